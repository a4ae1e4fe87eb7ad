"""Engines that tell what no message can carry: the host and everybody else's jobs go on."""

import pytest

from llamaorch.pool.v1 import dispatch_pb2
from pool_managerd.engines.port import Failed, Failure, Finish, Finished, Piece, PreloadError, Usage
from tests.integration.pool_managerd.fakes import ScriptedEngine
from tests.integration.pool_managerd.harness import FAST, Host, Options, RunHost

HALF_A_PAIR = "cut in the middle of a face: \ud83d"


async def serves(host: Host, job_id: str, handle: int) -> None:
    """Shows that the host takes a job, and tells its output and its end."""
    await host.start(job_id, handle)
    host.engine.say(job_id, "a", "b", end=True)
    out = host.orchestrator.stored(handle)
    await host.orchestrator.until(lambda: out.ended)
    assert out.text == "ab"
    assert not host.task.done()


async def test_an_error_with_half_a_pair_of_surrogates_is_told(run_host: RunHost) -> None:
    """JSON may hold it, protobuf may not: an engine that cuts a message inside an emoji."""
    host = await run_host()
    await host.start("j1", 1)
    host.engine.feed("j1").put_nowait(Failed(Failure.ENGINE_ERROR, HALF_A_PAIR))
    out = host.orchestrator.stored(1)

    await host.orchestrator.until(lambda: out.ended)

    error = out.ended[0].error
    assert error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR
    assert error.message == "cut in the middle of a face: ?"
    await serves(host, "j2", 2)


@pytest.mark.parametrize("ids", [(-1,), (1, 1 << 32), tuple(range(2_000_000))])
async def test_text_goes_on_without_ids_that_are_none(
    run_host: RunHost, ids: tuple[int, ...]
) -> None:
    """Ids of more than 32 bits, below 0, or more of them than a message can hold."""
    host = await run_host(Options(config={"limits": {"held_bytes_per_job": 1 << 30}}))
    await host.start("j1", 1)
    host.engine.feed("j1").put_nowait(Piece("text", ids))
    host.engine.feed("j1").put_nowait(Finished(Finish.EOS))
    out = host.orchestrator.stored(1)

    await host.orchestrator.until(lambda: out.ended)

    assert out.text == "text"
    assert not any(batch.token_ids for batch in out.batches)
    assert len(host.orchestrator.sessions) == 1
    await serves(host, "j2", 2)


async def test_counts_that_cannot_be_are_not_told(run_host: RunHost) -> None:
    """As if the engine had not said them."""
    host = await run_host()
    await host.start("j1", 1)
    usage = Usage(tokens_in=-3, tokens_out=1 << 70, decode_time_ms=5)
    host.engine.feed("j1").put_nowait(Finished(Finish.EOS, usage))
    out = host.orchestrator.stored(1)

    await host.orchestrator.until(lambda: out.ended)

    told = out.ended[0].usage
    assert not told.HasField("tokens_in")
    assert not told.HasField("tokens_out")
    assert told.decode_time_ms == 5
    await serves(host, "j2", 2)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        # Hugging Face's word for "no limit".
        ({"ctx_max": 10**30}, f"the engine tells ctx_max of {10**30}"),
        ({"slots_total": (1 << 16) + 1}, "the engine tells slots_total of 65537"),
        ({"engine_version": HALF_A_PAIR}, "a text that is no Unicode as its engine_version"),
        ({"quantizations": (HALF_A_PAIR,)}, "a text that is no Unicode as its quantization"),
        (PreloadError([HALF_A_PAIR]), "cut in the middle of a face: ?"),
    ],
)
async def test_what_an_engine_says_at_its_start_harms_its_pool_alone(
    run_host: RunHost, wrong: dict[str, object] | PreloadError, sentence: str
) -> None:
    """Its pool tells why it is not READY; the host stays, and starts it again."""
    odd = True

    def prepare(engine: ScriptedEngine, _: int) -> None:
        if odd and isinstance(wrong, PreloadError):
            engine.preload_error = wrong
        elif odd and isinstance(wrong, dict):
            engine.tells = wrong

    supervision = {**FAST, "storm_failures": 1_000}
    host = await run_host(Options(prepare=prepare, config={"supervision": supervision}))
    said = host.orchestrator.snapshots
    await host.orchestrator.until(lambda: any(sentence in each.state_detail for each in said))

    odd = False
    await serves(host, "j1", 1)
