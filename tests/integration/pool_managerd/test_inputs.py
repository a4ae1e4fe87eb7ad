"""Inputs that lie at the orchestrator: fetched before the engine is asked, or not at all."""

import asyncio

import pytest
from grpc import StatusCode, aio

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from pool_managerd.auth.credentials import Metadata
from pool_managerd.core.attempts import AttemptKey
from pool_managerd.engines.port import ChatMessage
from pool_managerd.link.inputs import Inputs
from tests.integration.pool_managerd.harness import Host, Options, RunHost

ENCODED = job_pb2.JobInput(text="Once upon a time").SerializeToString()


def piece(data: bytes, size_bytes: int = 0) -> registry_pb2.FetchInputResponse:
    """A piece of an input."""
    return registry_pb2.FetchInputResponse(chunk=data, size_bytes=size_bytes)


async def begin(host: Host, job_id: str = "j1", handle: int = 1, **fields: object) -> None:
    """Starts an attempt whose input must be fetched, and waits until it is asked for."""
    asked = len(host.orchestrator.fetches)
    await host.start(job_id, handle, input=job_pb2.JobInput(artifact_id="a"), **fields)
    await host.orchestrator.until(lambda: len(host.orchestrator.fetches) > asked)


async def end(host: Host, handle: int = 1) -> dispatch_pb2.AttemptEnded:
    """The end of an attempt."""
    await host.orchestrator.until(lambda: host.orchestrator.stored(handle).ended)
    return host.orchestrator.stored(handle).ended[0]


def give(host: Host, *answers: registry_pb2.FetchInputResponse | StatusCode | None) -> None:
    """Answers the calls that fetch."""
    for answer in answers:
        host.orchestrator.inputs.put_nowait(answer)


async def test_pieces_become_the_prompt(run_host: RunHost) -> None:
    """Text, or a conversation, in as many pieces as it takes."""
    host = await run_host()
    talk = job_pb2.JobInput(chat=job_pb2.ChatInput(messages=[{"role": "user", "content": "hi"}]))
    for number, (whole, prompt) in enumerate(
        (
            (ENCODED, "Once upon a time"),
            (talk.SerializeToString(), (ChatMessage("user", "hi"),)),
        ),
        1,
    ):
        await begin(host, f"j{number}", number)
        give(host, piece(whole[:3], len(whole)), piece(whole[3:]), None)
        host.engine.say(f"j{number}", "fine", end=True)

        assert (await end(host, number)).finish_reason == job_pb2.FINISH_REASON_EOS
        assert host.engine.requests[-1].prompt == prompt

    asked = [(fetch.job_id, fetch.attempt) for fetch in host.orchestrator.fetches]
    assert asked == [("j1", 1), ("j2", 1)]


async def test_a_fetch_belongs_to_the_trace_of_its_job(run_host: RunHost) -> None:
    """What an attempt waits for before its engine is asked is no gap in the trace."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    host = await run_host()
    await begin(host, traceparent=f"00-{trace_id}-b7ad6b7169203331-01")

    (told,) = host.orchestrator.fetch_traces
    assert told.split("-")[1] == trace_id


async def test_an_attempt_can_be_stopped_while_it_waits_for_its_input(run_host: RunHost) -> None:
    """By a cancel and by its deadline; the engine is not asked, and the slot is free again."""
    host = await run_host()
    await begin(host, "j1", 1)
    host.orchestrator.send(cancel=dispatch_pb2.CancelAttempt(handle=1))
    cancelled = await end(host, 1)
    await begin(host, "j2", 2, remaining_ms=20)
    late = await end(host, 2)

    assert cancelled.finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert late.error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_TIMEOUT
    assert host.engine.requests == []
    await begin(host, "j3", 3)


async def test_what_cannot_be_had_ends_the_attempt(run_host: RunHost) -> None:
    """Nobody else would get it either: refused, unreadable, larger than this host allows."""
    host = await run_host(Options(config={"limits": {"input_bytes_max": 4096}}))
    answers: list[tuple[registry_pb2.FetchInputResponse | StatusCode | None, ...]] = [
        (StatusCode.NOT_FOUND,),
        (StatusCode.DATA_LOSS,),
        (piece(b"\xff\xff", 2), None),
        (piece(job_pb2.JobInput(artifact_id="b").SerializeToString(), 3), None),
        (piece(b"x", 4097),),
        (piece(b"x" * 4097, 1),),
    ]
    for number, answer in enumerate(answers, 1):
        await begin(host, f"j{number}", number)
        give(host, *answer)
        ended = await end(host, number)

        assert ended.error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_INVALID_REQUEST, answer
        assert "its input could not be fetched" in ended.error.message

    assert host.engine.requests == []


async def test_half_an_input_is_never_taken_for_one(run_host: RunHost) -> None:
    """A stream that ends too early fails the attempt, which another pool may try."""
    host = await run_host()
    await begin(host)
    give(host, piece(ENCODED[:-1], len(ENCODED)), None)

    ended = await end(host)

    assert ended.error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR
    assert host.engine.requests == []


async def test_a_host_that_is_refused_leaves_the_input_to_others(run_host: RunHost) -> None:
    """Its token ended, say: that says nothing of the input, so another pool may try."""
    host = await run_host()
    await begin(host)
    give(host, StatusCode.UNAUTHENTICATED)

    assert (await end(host)).error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR


async def test_a_connection_that_is_gone_at_once_is_waited_for_again() -> None:
    """Who waited is woken when there is none any more."""

    async def no_token() -> Metadata:
        return ()

    inputs = Inputs(4096, no_token)
    fetching = asyncio.create_task(inputs.fetch(AttemptKey("j1", 1)))
    await turns()
    async with aio.insecure_channel("127.0.0.1:1") as channel:
        inputs.use(channel)
        inputs.use(None)
        await turns()

    assert not fetching.done()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching


async def turns() -> None:
    """Lets others do what they can do at once."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_fetch_that_breaks_is_made_again(run_host: RunHost) -> None:
    """From its beginning: nothing of the first try is kept."""
    host = await run_host()
    await begin(host)
    give(host, piece(b"half", len(ENCODED)), StatusCode.UNAVAILABLE)
    give(host, piece(ENCODED, len(ENCODED)), None)
    host.engine.say("j1", "fine", end=True)

    assert (await end(host)).finish_reason == job_pb2.FINISH_REASON_EOS
    assert host.engine.requests[-1].prompt == "Once upon a time"
    assert len(host.orchestrator.fetches) == 2
