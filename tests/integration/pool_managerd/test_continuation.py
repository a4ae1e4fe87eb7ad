"""CONTINUE: an attempt that goes on from text which an earlier one delivered. LO-304."""

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from pool_managerd.engines.port import Piece
from tests.integration.pool_managerd.fakes import digest
from tests.integration.pool_managerd.harness import RunHost


async def test_a_continuation_goes_on_with_offsets_and_digests(run_host: RunHost) -> None:
    """After CONTINUE the chain covers the text of the earlier attempt, which this host holds."""
    host = await run_host()
    await host.start("j1", 1)
    host.engine.say("j1", "one ", "two ")
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.text == "one two ")
    first = await host.ready()
    host.engine.die()
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.replica_id != first
    )

    point = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=digest("one two "))
    await host.start("j1", 2, attempt=2, continue_from=point, continue_token_ids=[0, 1])
    host.engine.say("j1", "three", attempt=2, end=True)
    rest = host.orchestrator.stored(2)
    await host.orchestrator.until(lambda: rest.ended)

    assert rest.text == "three"
    assert (rest.batches[0].first_index, rest.batches[0].text_offset) == (2, 8)
    assert rest.ended[0].text_digest == digest("one two three")
    assert host.engine.requests[-1].continue_token_ids == (0, 1)
    assert host.engine.requests[-1].continue_text == "one two "


async def test_the_host_counts_what_is_left_of_text_that_it_alone_holds(
    run_host: RunHost,
) -> None:
    """Ids where the engine reported them, else one for each piece."""
    host = await run_host()
    await host.start("j1", 1)
    feed = host.engine.feed("j1")
    feed.put_nowait(Piece("one ", token_ids=(1, 2)))
    feed.put_nowait(Piece("two "))
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.text == "one two ")
    first = await host.ready()
    host.engine.die()
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.replica_id != first
    )

    point = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=digest("one two "))
    sampling = job_pb2.Sampling(max_tokens=5)
    await host.start("j1", 2, attempt=2, continue_from=point, sampling=sampling)
    host.engine.say("j1", "three", attempt=2, end=True)
    rest = host.orchestrator.stored(2)
    await host.orchestrator.until(lambda: rest.ended)

    assert host.engine.requests[-1].sampling.max_tokens == 2
    assert host.engine.requests[-1].continue_text == "one two "
    assert rest.ended[0].usage.tokens_out == 4


async def test_a_continuation_on_another_host_builds_on_the_text_it_is_given(
    run_host: RunHost,
) -> None:
    """With continue_text the earlier attempt need not be held: offsets and digests go on."""
    host = await run_host()
    text = "één twee "
    offset = len(text.encode())
    point = events_pb2.ResumePoint(attempt=1, text_offset=offset, prefix_digest=digest(text))

    await host.start(
        "j1",
        2,
        attempt=2,
        continue_from=point,
        continue_text=text,
        continue_index=5,
        continue_tokens=2,
    )
    host.engine.say("j1", "drie", attempt=2, end=True)
    rest = host.orchestrator.stored(2)
    await host.orchestrator.until(lambda: rest.ended)

    assert rest.text == "drie"
    batch = rest.batches[0]
    assert (batch.first_index, batch.text_offset) == (5, offset)
    assert batch.prefix_digest == digest(text)
    assert rest.ended[0].text_digest == digest(text + "drie")
    assert host.engine.requests[-1].continue_text == text
    # Three of the prompt by the engine's count, of which two were generated before.
    usage = rest.ended[0].usage
    assert (usage.tokens_in, usage.tokens_out) == (1, 3)
    # Its time is that of a part, so it says nothing about all of them.
    assert not usage.HasField("decode_time_ms")


async def test_a_continuation_of_another_text_is_refused(run_host: RunHost) -> None:
    """continue_text that is not what the point proves starts nothing."""
    host = await run_host()
    point = events_pb2.ResumePoint(attempt=1, text_offset=3, prefix_digest=digest("abc"))

    await host.start("j1", 2, attempt=2, continue_from=point, continue_text="abd", continue_index=1)
    out = host.orchestrator.stored(2)
    await host.orchestrator.until(lambda: out.refused)

    assert out.refused[0].reason == dispatch_pb2.REFUSAL_REASON_UNSUPPORTED
    assert host.engine.requests == []
