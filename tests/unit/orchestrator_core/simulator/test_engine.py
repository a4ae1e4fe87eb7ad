"""Simulated pools: exact processor sharing, against a model that recomputes everything."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.simulator.engine import Engine, StreamEvent
from orchestrator_core.simulator.fleets import PoolSpec
from tests.unit.orchestrator_core.core.settings import STEADY
from tests.unit.orchestrator_core.simulator.cases import pools

SLOW = PoolSpec("p", slots=2, prefill=1000, decode=100, slope=0.5)


@dataclass
class NaiveStream:
    """What a stream still has to do."""

    job: int
    prefill_ms: float
    tokens: float
    to_first: float = 1.0


@dataclass(frozen=True)
class Move:
    """A start, or a stop where there are no tokens."""

    at_ms: float
    job: int
    tokens: tuple[int, int] | None


def naive(spec: PoolSpec, moves: list[Move]) -> dict[tuple[str, int], float]:
    """Advances every stream from each event to the next, at rates computed anew."""
    seen: dict[tuple[str, int], float] = {}
    live: list[NaiveStream] = []
    now_ms, pending = 0.0, list(moves)
    while live or pending:
        rate = spec.decode / (1 + spec.slope * (len(live) - 1)) / 1000 if live else 0.0
        spans = [s.prefill_ms or min(s.tokens, s.to_first) / rate for s in live]
        due_ms = now_ms + min(spans, default=math.inf)
        acting = bool(pending) and pending[0].at_ms <= due_ms
        at_ms = pending[0].at_ms if acting else due_ms
        for stream in live:
            _pass(stream, at_ms - now_ms, rate)
        now_ms = at_ms
        if acting:
            move = pending.pop(0)
            live = [s for s in live if s.job != move.job]
            if move.tokens is not None:
                prefill_ms = 1000 * move.tokens[0] / spec.prefill
                live.append(NaiveStream(move.job, prefill_ms, float(move.tokens[1])))
            continue
        for stream in live:
            if stream.to_first <= 0:
                seen["first", stream.job] = now_ms
                stream.to_first = math.inf
        for stream in [s for s in live if s.tokens <= 0]:
            seen["end", stream.job] = now_ms
            live.remove(stream)
    return seen


def _pass(stream: NaiveStream, span_ms: float, rate: float) -> None:
    if stream.prefill_ms:
        stream.prefill_ms -= span_ms
        if stream.prefill_ms < 1e-7:
            stream.prefill_ms = 0.0
        return
    for name in ("tokens", "to_first"):
        left = getattr(stream, name) - span_ms * rate
        setattr(stream, name, 0.0 if left < 1e-9 else left)


@given(
    spec=pools(),
    script=st.lists(
        st.tuples(
            st.floats(0, 3000),
            st.integers(0, 2000),
            st.integers(1, 200),
            st.integers(0, 9),
        ),
        max_size=20,
    ),
)
@settings(STEADY, max_examples=200)
def test_every_first_token_and_end_comes_when_a_naive_model_says(
    spec: PoolSpec, script: list[tuple[float, int, int, int]]
) -> None:
    """Streams come, go and are stopped at any moment, with any slow-down."""
    engine, moves, seen = Engine([spec]), list[Move](), dict[tuple[str, int], float]()
    now_ms, running = 0.0, list[int]()

    def play(until_ms: float) -> None:
        while engine.next_ms() <= until_ms:
            at_ms = engine.next_ms()
            happened = engine.pop()
            if happened is not None:
                what, _, number = happened
                seen["end" if what is StreamEvent.END else "first", number] = at_ms
                if what is StreamEvent.END:
                    running.remove(number)
            if at_ms == math.inf:
                return

    for job, (gap_ms, prompt, output, stop) in enumerate(script):
        now_ms += gap_ms
        play(now_ms)
        if running and stop == 0:
            moves.append(Move(now_ms, running[0], None))
            engine.stop(running.pop(0), now_ms)
        if engine.pools[0].free:
            moves.append(Move(now_ms, job, (prompt, output)))
            engine.start(0, job, (prompt, output), now_ms)
            running.append(job)
    play(1e12)

    expected = naive(spec, moves)
    assert seen.keys() == expected.keys()
    for key, at_ms in expected.items():
        assert seen[key] == pytest.approx(at_ms, rel=1e-6, abs=1e-3), key
    assert engine.pools[0].busy == 0


def test_a_stream_alone_takes_prefill_plus_tokens_at_the_single_rate() -> None:
    """1,000 prompt tokens at 1,000/s, then 50 tokens at 100/s."""
    engine = Engine([SLOW])
    engine.start(0, 7, (1000, 50), 0.0)

    times = []
    while engine.next_ms() < math.inf:
        times.append((engine.next_ms(), engine.pop()))

    assert times == [
        (1000.0, None),
        (1010.0, (StreamEvent.FIRST_TOKEN, 0, 7)),
        (1500.0, (StreamEvent.END, 0, 7)),
    ]


def test_a_stream_in_prefill_slows_the_one_that_decodes() -> None:
    """It holds a slot: 15 ms a token instead of 10."""
    engine = Engine([SLOW])
    engine.start(0, 1, (0, 100), 0.0)
    engine.start(0, 2, (9000, 1), 0.0)

    while (happened := engine.pop()) is None or happened[0] is not StreamEvent.END:
        ended_ms = engine.next_ms()

    assert ended_ms == pytest.approx(1500.0)


def test_a_pool_refuses_more_than_its_slots() -> None:
    """The dispatcher that tries it is at fault."""
    engine = Engine([SLOW])
    engine.start(0, 1, (1, 1), 0.0)
    engine.start(0, 2, (1, 1), 0.0)

    with pytest.raises(ValueError, match="no free slot"):
        engine.start(0, 3, (1, 1), 0.0)


def test_busy_time_adds_up_over_slots() -> None:
    """One slot for 1.5 s, and one for the first 0.5 s of it, in prefill until it is stopped."""
    engine = Engine([SLOW])
    engine.start(0, 7, (1000, 50), 0.0)
    engine.start(0, 8, (9000, 50), 0.0)
    engine.stop(8, 500.0)

    while engine.next_ms() < math.inf:
        engine.pop()

    assert engine.pools[0].busy_ms == pytest.approx(2000.0)
