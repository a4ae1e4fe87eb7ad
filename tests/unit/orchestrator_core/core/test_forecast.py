"""What waiting jobs are told, against fleets of which the truth is known. LO-206, ORCH-2007."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.effects import Effect, ReplyAccepted
from orchestrator_core.core.events import AttemptEnded, AttemptStarted, OutputProgressed
from orchestrator_core.core.forecast import Forecast, forecast, on_time_probability
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.residuals import RATIO_MAX, RESIDUALS_KEPT
from orchestrator_core.core.spec import Needs
from orchestrator_core.wire.views import receipt_to_proto
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.settings import STEADY

# A job of a hundred tokens takes a second, on every slot and however many are busy.
TOKENS, SERVICE_MS = 100, 1_000


class Steady(Bench):
    """A fleet on which every job takes exactly `SERVICE_MS`, with a clock of its own."""

    def __init__(self, slots: int, **config: Any) -> None:
        pool = wide(slots=slots, perf_tokens_per_s=100.0, first_token_ms=0)
        super().__init__(pool, stale_after_ms=10**9, queue_capacity=10_000, **config)
        self.running: list[tuple[int, str]] = []
        self.started_ms: dict[str, int] = {}
        self.told: dict[str, ReplyAccepted] = {}

    def arrive(self, job_id: str, at_ms: int, **fields: Any) -> ReplyAccepted:
        """A job arrives, after everything that ends before it."""
        while self.running and self.running[0][0] <= at_ms:
            self.end_next()
        self.now_ms = at_ms
        effects = self.enqueue(job_id, expected_tokens=TOKENS, **fields)
        self._note(effects)
        (self.told[job_id],) = only(effects, ReplyAccepted)
        return self.told[job_id]

    def end_next(self) -> None:
        """The job that ends first does."""
        self.now_ms, job_id = self.running.pop(0)
        usage = Usage(tokens_in=1, tokens_out=TOKENS)
        self._note(self.step(AttemptEnded(job_id, 1, 1, finish=Finish.EOS, usage=usage)))

    def _note(self, effects: list[Effect]) -> None:
        for record in only(effects, DispatchRecord):
            self.started_ms[record.job_id] = self.now_ms
            self.running.append((self.now_ms + SERVICE_MS, record.job_id))
            self.step(AttemptStarted(record.job_id, 1))
            self.step(OutputProgressed(record.job_id, 1, 1))


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_starts_on_a_saturated_fleet_are_told_right(slots: int) -> None:
    """Arrivals are a tenth faster than ends, so the line grows; after a warm-up a tenth is off."""
    bench = Steady(slots)
    errors = []
    for n in range(400):
        bench.arrive(f"j{n}", n * SERVICE_MS * 10 // (11 * slots))
    while bench.running:
        bench.end_next()
    for n in range(200, 400):
        receipt = bench.told[f"j{n}"].receipt
        assert receipt.predicted_start_ms is not None
        waited_ms = bench.started_ms[f"j{n}"] - n * SERVICE_MS * 10 // (11 * slots)
        errors.append(abs(receipt.predicted_start_ms - waited_ms) / waited_ms)

    assert sorted(errors)[len(errors) // 2] < 0.1
    assert max(errors) < 0.35


def test_absurd_numbers_stay_within_what_the_wire_can_tell() -> None:
    """The largest job on the slowest pool behind many like it, all later than was thought."""
    crawling = wide(slots=1, ctx_max=0, perf_tokens_per_s=1e-5, prefill_tokens_per_s=1e-9)
    bench = Bench(crawling, stale_after_ms=10**9)
    for _ in range(RESIDUALS_KEPT):
        bench.state.predictor.residuals.start.add(RATIO_MAX)
    size = {"max_tokens": 2**32 - 1, "expected_tokens": 2**32 - 1, "prompt_bytes": 2**62}

    for n in range(50):
        (reply,) = only(bench.enqueue(f"j{n}", **size), ReplyAccepted)
        told = receipt_to_proto(reply.receipt)

    assert told.predicted_end_ms > told.predicted_start_ms > 0


def test_a_job_that_is_placed_at_once_starts_now() -> None:
    """Exactly, and its end is the one by which its pool was chosen."""
    bench = Steady(2)

    receipt = bench.arrive("a", 50).receipt

    assert receipt.predicted_start_ms == 0
    assert receipt.predicted_end_ms == SERVICE_MS


def test_near_the_head_what_runs_now_counts() -> None:
    """One slot whose job is three quarters done: the first in line starts after the rest of it."""
    bench = Steady(1)
    for n in range(30):
        bench.arrive(f"warm{n}", n * 2 * SERVICE_MS)
    at_ms = 30 * 2 * SERVICE_MS
    bench.arrive("running", at_ms)

    first = bench.arrive("first", at_ms + SERVICE_MS * 3 // 4).receipt
    second = bench.arrive("second", at_ms + SERVICE_MS * 3 // 4).receipt

    assert first.predicted_start_ms == pytest.approx(SERVICE_MS / 4, abs=20)
    assert first.predicted_end_ms == pytest.approx(SERVICE_MS * 5 / 4, abs=40)
    assert second.predicted_start_ms == pytest.approx(SERVICE_MS * 5 / 4, abs=40)


@STEADY
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 30))
def test_further_back_means_later(slots: int, arrivals: int, more: int) -> None:
    """Starts never come sooner for a later position, and BATCH is never told less."""
    bench = Steady(slots)
    for n in range(slots + 20 + more):
        bench.arrive(f"j{n}", n * SERVICE_MS // (arrivals * slots))
    asked = {batch: spec(batch=batch, expected_tokens=TOKENS) for batch in (False, True)}

    told = {
        batch: [forecast(bench.state, one, n, bench.now_ms).start_ms or 0 for n in range(5, 60)]
        for batch, one in asked.items()
    }

    assert told[False] == sorted(told[False])
    assert told[True] == sorted(told[True])
    assert all(b >= i for b, i in zip(told[True], told[False], strict=True))
    if slots == 1:
        assert told[False][0] > 0


def test_batch_moves_with_what_interactive_leaves_over() -> None:
    """Three arrive each second and about four end, so that about one is left over for BATCH."""
    bench = Steady(4)
    for n in range(120):
        bench.arrive(f"i{n}", n * SERVICE_MS // 3)
    asked = {batch: spec(batch=batch, expected_tokens=TOKENS) for batch in (False, True)}

    interactive, batch = (
        forecast(bench.state, asked[kind], 40, bench.now_ms).start_ms or 0 for kind in (False, True)
    )

    assert interactive == pytest.approx(40 * SERVICE_MS / 4, rel=0.1)
    ending_per_ms = 40 / interactive
    assert batch == pytest.approx(40 / (ending_per_ms - 3 / SERVICE_MS), rel=0.02)
    assert batch > 3.5 * interactive


def test_batch_moves_with_its_turns_when_nothing_is_left_over() -> None:
    """Every ninth placement is its own by default, so it is never told never."""
    bench = Steady(1)
    for n in range(40):
        bench.arrive(f"i{n}", n * SERVICE_MS // 4)
    asked = {batch: spec(batch=batch, expected_tokens=TOKENS) for batch in (False, True)}

    interactive, batch = (
        forecast(bench.state, asked[kind], 40, bench.now_ms).start_ms or 0 for kind in (False, True)
    )

    assert batch == pytest.approx(9 * interactive, rel=0.01)


def test_jobs_that_were_given_up_teach_that_it_takes_longer() -> None:
    """One at half of its service, one in line at half of its wait: both are censored."""
    bench = Steady(1)
    residuals = bench.state.predictor.residuals
    bench.arrive("runs", 0, deadline_ms=SERVICE_MS // 2)
    bench.arrive("waits", 0, deadline_ms=SERVICE_MS // 2)
    start_ms = bench.told["waits"].receipt.predicted_start_ms

    bench.at(SERVICE_MS // 2)

    assert list(residuals.service_at_once.kept) == [(0.5, True)]
    assert start_ms == SERVICE_MS
    assert list(residuals.start.kept) == [(0.5, True)]


def test_jobs_that_ended_teach_what_it_took() -> None:
    """The one that waited is compared with both parts of what it was told."""
    bench = Steady(1)
    residuals = bench.state.predictor.residuals
    bench.arrive("first", 0)
    bench.arrive("second", 0)
    while bench.running:
        bench.end_next()

    assert list(residuals.service_at_once.kept) == [(1.0, False)]
    assert list(residuals.start.kept) == [(1.0, False)]
    assert list(residuals.service_waited.kept) == [(1.0, False)]


@STEADY
@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=60),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=60),
    st.integers(0, 50_000),
    st.integers(0, 50_000),
    st.one_of(st.none(), st.integers(0, 50_000)),
)
def test_a_later_deadline_is_never_less_likely_met(
    starts: list[tuple[float, bool]],
    services: list[tuple[float, bool]],
    start_ms: int,
    service_ms: int,
    plain_ms: int | None,
) -> None:
    """Between 0 and 1, whatever was learned; 0 for a deadline that has gone by."""
    assert max(len(starts), len(services)) < RESIDUALS_KEPT
    bench = Bench()
    residuals = bench.state.predictor.residuals
    for window, seen in (
        (residuals.start, starts),
        (residuals.service_at_once, services),
        (residuals.service_waited, services),
    ):
        for ratio, censored in seen:
            window.add(ratio, censored=censored)
    shape = Forecast(start_ms, start_ms + service_ms, plain_ms)

    told = [
        on_time_probability(bench.state, spec(deadline_ms=deadline_ms), shape, 1_000)
        for deadline_ms in (900, 1_000, 1_001, 5_000, 20_000, 90_000, 10**6, 10**9)
    ]

    assert all(chance is not None and 0.0 <= chance <= 1.0 for chance in told)
    assert told == sorted(told, key=lambda chance: chance or 0.0)
    assert told[:2] == [0.0, 0.0]
    assert on_time_probability(bench.state, spec(), shape, 1_000) is None


def test_jobs_of_other_lanes_are_ahead_too() -> None:
    """Twenty kinds of needs, one pool: the last in line is told of the nineteen before it."""
    bench = Bench(wide(slots=1, perf_tokens_per_s=100.0, first_token_ms=0), queue_capacity=100)
    bench.enqueue("running", expected_tokens=TOKENS)
    told = []
    for n in range(20):
        needs = Needs("m", required_ctx=100 + n)
        (reply,) = only(bench.enqueue(f"j{n}", needs=needs, expected_tokens=TOKENS), ReplyAccepted)
        assert reply.receipt.position == 1, "in a lane of its own"
        told.append(reply.receipt.predicted_start_ms or 0)

    assert told == sorted(told)
    assert told[-1] == pytest.approx(20 * SERVICE_MS, rel=0.1)
