"""The mock engine's scripts, on a clock of their own. ORCH-3058."""

import asyncio
from typing import Any

import pytest

from pool_managerd.engines.mock import MockConfig, MockEngine
from pool_managerd.engines.mock_script import MockScript
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)


class StepClock:
    """A sleep that ends at once and remembers what was asked."""

    def __init__(self) -> None:
        self.waits_ms: list[int] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_ms.append(round(seconds * 1000))


def request(request_id: str = "r", mock: object = None, **sampling: Any) -> GenerationRequest:
    """Returns a request with this script."""
    options = {} if mock is None else {"mock": mock}
    parameters = SamplingParams(**{"seed": 1, "engine_options": options, **sampling})
    return GenerationRequest(request_id, "tell me", parameters)


async def started(slots: int = 1, **script: Any) -> MockEngine:
    """Returns a running engine with this script."""
    engine = MockEngine(MockConfig(slots=slots, script=MockScript(**script)))
    await engine.start()
    return engine


async def collect(engine: MockEngine, wanted: GenerationRequest) -> list[GenerationEvent]:
    """Returns all events of a generation."""
    return [event async for event in engine.generate(wanted)]


async def test_the_clock_is_asked_for_the_delays_of_the_script() -> None:
    """First-token delay and interval come from the script, in order."""
    clock = StepClock()
    script = MockScript(token_count=3, first_token_delay_ms=250, token_interval_ms=20)
    engine = MockEngine(MockConfig(script=script), clock.sleep)
    await engine.start()

    events = await collect(engine, request())

    assert clock.waits_ms == [250, 20, 20]
    assert len(events) == 4
    assert isinstance(events[-1], Finished)
    assert events[-1].finish is Finish.EOS


async def test_a_request_changes_the_script_for_itself_alone() -> None:
    """Whole numbers may be doubles, and the next request has the default again."""
    engine = await started(token_count=2)

    changed = await collect(engine, request(mock={"token_count": 5.0}))
    usual = await collect(engine, request())

    assert (len(changed), len(usual)) == (6, 3)


@pytest.mark.parametrize("failure", list(Failure))
async def test_a_script_can_fail_in_every_way(failure: Failure) -> None:
    """The failure comes after as many pieces as the script says, and the engine lives on."""
    engine = await started()
    script = {"fail_after_tokens": 2, "failure": failure.value}

    events = await collect(engine, request(mock=script))

    assert [type(event) for event in events] == [Piece, Piece, Failed]
    assert isinstance(events[-1], Failed)
    assert events[-1].failure is failure
    assert events[-1].usage.tokens_out == 2
    assert await engine.healthy()


async def test_a_dying_script_takes_the_engine_with_it() -> None:
    """A stalled neighbour ends with ENGINE_DIED, and so does everything afterwards."""
    engine = await started(slots=2)
    stalled = engine.generate(request("stalled", {"stall_after_tokens": 1}))
    await anext(stalled)
    waiting = asyncio.ensure_future(anext(stalled))

    events = await collect(engine, request("dying", {"die_after_tokens": 2}))

    for end in (events[-1], await waiting, *(await collect(engine, request("late")))):
        assert isinstance(end, Failed)
        assert end.failure is Failure.ENGINE_DIED
    assert "died" in await engine.wait_exit()
    assert not await engine.healthy()


async def test_a_death_ends_a_wait_between_tokens() -> None:
    """Nobody waits out an hour on an engine that is gone."""
    engine = await started()
    generation = engine.generate(request(mock={"first_token_delay_ms": 3_600_000}))
    first = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)

    engine.die()

    event = await first
    assert isinstance(event, Failed)
    assert event.failure is Failure.ENGINE_DIED


async def test_an_unconfirmed_cancel_keeps_its_slot() -> None:
    """The slot stays taken until the engine is gone."""
    engine = await started()
    generation = engine.generate(request("stuck", {"cancel_unconfirmed": True}))
    await anext(generation)
    await generation.aclose()

    with pytest.raises(CancelUnconfirmedError):
        await engine.confirm_idle("stuck", 1_000)

    (refusal,) = await collect(engine, request("next"))
    assert isinstance(refusal, Failed)
    await engine.stop()
    await engine.confirm_idle("stuck", 1_000)


async def test_a_preload_failure_names_every_shortfall() -> None:
    """The start raises what the configuration says."""
    engine = MockEngine(MockConfig(preload_shortfalls=("no model", "no memory")))

    with pytest.raises(PreloadError) as raised:
        await engine.start()

    assert raised.value.shortfalls == ("no model", "no memory")


async def test_max_tokens_and_context_limit_the_output() -> None:
    """Both end with LENGTH."""
    engine = MockEngine(MockConfig(ctx_max=5, script=MockScript(token_count=100)))
    await engine.start()

    by_limit = await collect(engine, request(max_tokens=2))
    by_context = await collect(engine, request())

    assert (len(by_limit), len(by_context)) == (3, 4)
    for events in (by_limit, by_context):
        assert isinstance(events[-1], Finished)
        assert events[-1].finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"engine_options": {"mock": 5}}, "must be an object"),
        ({"engine_options": {"mock": {"colour": 1}}}, "'colour' is unknown"),
        ({"engine_options": {"mock": {"token_count": "many"}}}, "must be of type int"),
        ({"engine_options": {"mock": {"token_count": True}}}, "must be of type int"),
        ({"engine_options": {"mock": {"token_count": -1}}}, "token_count"),
        ({"engine_options": {"mock": {"token_interval_ms": 1e12}}}, "delays"),
        ({"engine_options": {"mock": {"failure": "boredom"}}}, "boredom"),
        ({"engine_options": {"top_k": 5}}, "top_k"),
        ({"grammar": "root ::= [a]"}, "grammar"),
        ({"json_schema": "{}"}, "schema"),
    ],
)
async def test_senseless_requests_are_refused(sampling: dict[str, Any], words: str) -> None:
    """The refusal names what is wrong."""
    engine = await started()
    wanted = GenerationRequest("r", "x", SamplingParams(**{"seed": 1, **sampling}))

    (refusal,) = await collect(engine, wanted)

    assert isinstance(refusal, Failed)
    assert refusal.failure is Failure.INVALID_REQUEST
    assert words in refusal.message


@pytest.mark.parametrize("config", [{"slots": 0}, {"ctx_max": 0}])
def test_an_engine_without_room_is_refused(config: dict[str, Any]) -> None:
    """Every engine has a slot and a context."""
    with pytest.raises(ValueError, match="at least 1"):
        MockConfig(**config)
