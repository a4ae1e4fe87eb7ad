"""How the Triton adapter cancels, and how it knows that the server has stopped. ORCH-3057."""

import asyncio
import contextlib

import pytest

from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from pool_managerd.engines.triton import TritonEngine
from tests.conformance.triton_replay import REQUEST, Replay, events_of, failed, failure_of, response

CONFIRM_MS = 5_000


async def test_closing_a_generation_cancels_its_stream(
    engine: TritonEngine, replay: Replay
) -> None:
    """The server sees it, and the slot is free only once the gauge says so."""
    replay.responses, replay.hangs = [response(b" a")], True
    generation = engine.generate(REQUEST)
    assert await anext(generation) == Piece(" a")

    await generation.aclose()
    async with asyncio.timeout(20):
        await replay.cancelled.wait()
    replay.busy = [1, 1, 0]
    await engine.confirm_idle("r", CONFIRM_MS)

    assert replay.busy == [0]


async def test_a_model_that_goes_on_is_reported(engine: TritonEngine, replay: Replay) -> None:
    """The slot stays taken until a confirmation."""
    replay.responses, replay.hangs = [response(b" a")], True
    generation = engine.generate(REQUEST)
    await anext(generation)
    await generation.aclose()
    replay.busy = [1]

    with pytest.raises(CancelUnconfirmedError, match="after 50 ms"):
        await engine.confirm_idle("r", 50)

    assert (await failure_of(engine))[1] == "a generation with this request id is open"


async def test_a_generation_that_still_runs_does_not_hinder_a_confirmation(
    engine: TritonEngine, replay: Replay
) -> None:
    """The gauge counts all requests of the model, ours that are open among them."""
    replay.responses, replay.hangs, replay.busy = [response(b" a")], True, [1]
    other = engine.generate(GenerationRequest("other", "hi", SamplingParams(seed=1)))
    closed = engine.generate(REQUEST)
    async with contextlib.aclosing(other):
        await anext(other)
        await anext(closed)

        await closed.aclose()
        await engine.confirm_idle("r", CONFIRM_MS)


async def test_a_cancel_before_the_first_response_needs_more_than_one_quiet_look(
    engine: TritonEngine, replay: Replay
) -> None:
    """The request may still be on its way to the model."""
    replay.responses, replay.hangs = (), True
    generation = engine.generate(REQUEST)
    first = asyncio.ensure_future(anext(generation))
    await replay.asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await generation.aclose()
    replay.busy = [0, 1, 0, 0, 0, 9]

    await engine.confirm_idle("r", CONFIRM_MS)

    assert replay.busy == [9]


async def test_a_stream_that_has_ended_is_not_cancelled(
    engine: TritonEngine, replay: Replay
) -> None:
    """Its server ends it in order; one that forgets to is not waited for."""
    replay.responses = [failed("no")]
    await events_of(engine)
    assert not replay.cancelled.is_set()

    replay.hangs = True
    await events_of(engine)

    async with asyncio.timeout(20):
        await replay.cancelled.wait()
