"""Deadline-aware admission: who will hardly be in time is refused, on evidence. LO-105."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptStarted,
    OutputProgressed,
)
from orchestrator_core.core.gates import JUDGED_MIN
from orchestrator_core.core.outcome import Finish, Reason, Usage
from tests.unit.orchestrator_core.core.bench import Bench, learned, let_in, refusal
from tests.unit.orchestrator_core.core.build import snapshot


def gated(**config: Any) -> Bench:
    """The gate on, and a pool that stays fresh."""
    return Bench(snapshot(), deadline_aware=True, stale_after_ms=1_000_000_000, **config)


def test_a_job_that_will_hardly_be_in_time_is_refused() -> None:
    """LO-105: with what the client needs to decide; the same job with more time is let in."""
    bench = gated()
    learned(bench, JUDGED_MIN)
    bench.enqueue("running", "waiting")

    refused = refusal(bench.enqueue("a", deadline_ms=bench.now_ms + 10))

    assert (refused.reason, refused.policy_label) == (Reason.ADMISSION_REJECT, "deadline-unlikely")
    assert float(refused.metadata["on_time_probability"]) < 0.1
    assert refused.retry_after_ms is None, "not even an idle pool would make it"
    assert let_in(bench.enqueue("a", deadline_ms=bench.now_ms + 1_000_000))


@pytest.mark.parametrize(
    ("jobs", "config"),
    [(JUDGED_MIN - 1, {}), (0, {}), (JUDGED_MIN, {"deadline_aware": False})],
)
def test_nobody_is_refused_without_evidence_or_with_the_gate_off(
    jobs: int, config: dict[str, Any]
) -> None:
    """A chance that rests on nothing is no reason."""
    bench = Bench(snapshot(), stale_after_ms=10_000_000, **{"deadline_aware": True, **config})
    learned(bench, jobs)
    bench.enqueue("running", "waiting")

    assert let_in(bench.enqueue("a", deadline_ms=bench.now_ms + 10))


@pytest.mark.parametrize(("deadline_ms", "accepted"), [(1_500, True), (1_000, False)])
def test_an_idle_pool_takes_what_it_ends_in_time(deadline_ms: int, accepted: bool) -> None:
    """Nobody is refused for a wait that there is not: the job takes about 1.25 s at once.

    One that may disprove that has just failed.
    """
    bench = gated()
    for n in range(2 * JUDGED_MIN):
        bench.enqueue(f"e{n}", expected_tokens=20)
        bench.step(AttemptStarted(f"e{n}", 1))
        bench.at(bench.now_ms + 200)
        bench.step(OutputProgressed(f"e{n}", 1, 1))
        bench.at(bench.now_ms + 1_000)
        bench.end(f"e{n}", usage=Usage(tokens_in=1, tokens_out=20))

    assert played(bench, "hopeless", service_ms=1_000, deadline_ms=100)
    effects = bench.enqueue("a", expected_tokens=20, deadline_ms=bench.now_ms + deadline_ms)

    assert let_in(effects) is accepted


def played(bench: Bench, job_id: str, service_ms: int, deadline_ms: int) -> bool:
    """A job of twenty tokens arrives and runs to its end or its deadline; True: it was let in."""
    tokens = {"expected_tokens": 20, "deadline_ms": bench.now_ms + deadline_ms}
    if not let_in(bench.enqueue(job_id, **tokens)):
        return False
    bench.step(AttemptStarted(job_id, 1))
    began_ms = bench.now_ms
    bench.at(began_ms + min(service_ms // 10, deadline_ms))
    bench.step(OutputProgressed(job_id, 1, 1))
    bench.at(began_ms + min(service_ms, deadline_ms))
    live = bench.core.jobs[job_id].live
    usage = Usage(tokens_in=1, tokens_out=20)
    if live:
        bench.end(job_id, usage=usage)
    else:
        bench.step(AttemptEnded(job_id, 1, 1, finish=Finish.CANCELLED, usage=usage))
    return True


def slow_fleet(service_ms: int) -> Bench:
    """Its jobs have taken so long until now, and it was seen in many of them."""
    bench = gated(idle_timeout_ms=10_000_000, wall_timeout_ms=10_000_000)
    for n in range(2 * JUDGED_MIN):
        assert played(bench, f"slow {n}", service_ms, 100 * service_ms)
    return bench


@given(st.integers(2, 200), st.floats(0.05, 0.8))
@settings(max_examples=10, deadline=None)
def test_a_prediction_that_no_longer_holds_locks_nobody_out(slower: int, share: float) -> None:
    """LO-105: all deadlines are short, and refused jobs teach nothing."""
    deadline_ms = 10_000
    bench = slow_fleet(slower * deadline_ms)

    accepted = []
    for n in range(40):
        bench.at(bench.now_ms + 1_000)
        accepted.append(played(bench, f"fast {n}", int(share * deadline_ms), deadline_ms))

    assert accepted[0]
    assert all(accepted[1:]), "each that was in time lets the next one in"


@given(st.integers(2, 50), st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_jobs_that_are_late_as_predicted_take_a_tenth_of_the_time(
    slower: int, every_s: int
) -> None:
    """The gate stands; a slot is risked now and then."""
    deadline_ms = 10_000
    bench = slow_fleet(slower * deadline_ms)
    begin_ms, lost_ms = bench.now_ms, 0

    for n in range(100):
        bench.at(bench.now_ms + every_s * 1_000)
        lost_ms += deadline_ms * played(bench, f"late {n}", slower * deadline_ms, deadline_ms)

    assert 0 < lost_ms <= deadline_ms + (bench.now_ms - begin_ms) / 10


def test_one_job_at_a_time_may_disprove_a_prediction() -> None:
    """And none where all slots are taken; one that was not accepted after all does not count."""
    bench = slow_fleet(100_000)
    soon = {"expected_tokens": 20, "deadline_ms": bench.now_ms + 10_000}

    first, second = bench.enqueue("first", **soon), bench.enqueue("second", **soon)
    bench.step(AcceptsFailed(("first",)))
    third = bench.enqueue("third", **soon)

    assert [let_in(effects) for effects in (first, second, third)] == [True, False, True]


def test_a_job_without_a_deadline_passes_the_gate() -> None:
    """Nobody can be late for nothing."""
    bench = gated()
    learned(bench, JUDGED_MIN)

    assert let_in(bench.enqueue("a"))
