"""`step` itself: time, views, and that what is not for it changes nothing."""

import pytest

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import (
    ConfirmEnd,
    JobForgotten,
    ReplyRefused,
    SendRelease,
)
from orchestrator_core.core.events import (
    AttemptStarted,
    CancelRequested,
    DrainRequested,
    EndConfirmed,
    EnqueueRequested,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Priority
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot, spec


def test_time_that_goes_backwards_stands_still() -> None:
    """No deadline is judged by an earlier clock than the one before."""
    bench = Bench(wide(), stale_after_ms=100)
    bench.at(50)
    bench.report(wide(version=2))

    bench.at(10)
    bench.enqueue("a")

    assert bench.core.jobs["a"].accepted_ms == 50


def test_views_list_who_waits_runs_and_has_ended() -> None:
    """In offer order, in the order of the slots, and the latest end first, run or not."""
    bench = Bench(wide(slots=2))
    bench.enqueue("a", "b", "c", "d", expected_tokens=7)
    bench.enqueue("e", batch=True)
    core = bench.core

    bench.step(CancelRequested("c", 0), 10)
    bench.step(AttemptStarted("a", 1), 15)
    bench.step(CancelRequested("a", 0), 20)
    stopping = list(core.attempts)
    bench.end("b")

    assert stopping == [("a", 1), ("b", 1)], "a holds its slot until the pool confirms"
    assert list(core.attempts) == [("a", 1), ("d", 1)]
    assert [job.job_id for job in core.waiting(Priority.INTERACTIVE)] == []
    assert [job.job_id for job in core.waiting(Priority.BATCH)] == ["e"]
    assert [job.job_id for job in core.ended_last(9)][2:] == ["c"]
    assert {job.job_id for job in core.ended_last(2)} == {"a", "b"}
    assert core.ended_total == 3
    assert core.expected_tokens(core.jobs["e"]) > 0
    assert core.expected_tokens(core.jobs["d"]) == 7


def test_an_idle_core_has_no_deadline() -> None:
    """The shell may sleep until something happens."""
    assert Core(CoreConfig()).next_deadline_ms() is None


def test_views_answer_what_is_asked() -> None:
    """Depth, order, position, forecast and what a waiting job waits for."""
    bench = Bench(wide(slots=1))
    bench.enqueue("a", "b", "c", deadline_ms=10**9)
    bench.enqueue("d", batch=True)
    core = bench.core

    assert (core.queue_depth(), core.queue_depth(Priority.BATCH)) == (3, 1)
    assert core.queue_order(Priority.INTERACTIVE) == ("b", "c")
    assert [core.position(core.jobs[j]) for j in "abcd"] == [None, 1, 2, 3]
    assert core.forecast(core.jobs["d"]).start_ms is not None
    assert core.on_time_probability(core.jobs["a"], 0) == 1.0
    assert core.on_time_probability(core.jobs["b"], 0) == 1.0
    (exclusion,) = core.waiting_for(core.jobs["b"], 0)
    assert [s.reason.value for s in exclusion.shortfalls] == ["no_slot"]
    assert core.holds_slot("a", 1)
    assert not core.holds_slot("b", 1)


def test_while_it_drains_nobody_is_told_a_start() -> None:
    """What waits starts after the restart, of which nothing is known."""
    bench = Bench(wide(slots=1))
    bench.enqueue("a", "b", deadline_ms=10**9)
    core, waits = bench.core, bench.core.jobs["b"]
    before = core.forecast(waits).start_ms

    bench.step(DrainRequested())

    told = core.forecast(waits)
    assert before is not None
    assert (told.start_ms, told.end_ms) == (None, None)
    assert core.on_time_probability(waits, 0) is None


@pytest.mark.parametrize(
    "event",
    [Tick(), SubscribersChanged("nobody", 1), AttemptStarted("nobody", 1), DrainRequested()],
)
def test_what_concerns_nobody_has_no_effect(event: object) -> None:
    """Unknown jobs and attempts are no error."""
    bench = Bench(wide())

    assert bench.step(event) == []  # type: ignore[arg-type]


def test_nothing_is_placed_while_draining() -> None:
    """What waits stays in the journal for the next start."""
    bench = Bench(snapshot(slots_free=0))
    bench.enqueue("a")
    bench.step(DrainRequested())

    bench.report(wide(version=2))

    assert bench.core.draining
    assert bench.core.jobs["a"].state is JobState.QUEUED


def test_a_job_is_not_forgotten_while_its_attempt_holds_a_slot() -> None:
    """Its number would be given out again if the client used the id again."""
    bench = Bench(wide(), retention_ms=100, stale_after_ms=10**6)
    bench.enqueue("a")
    bench.step(CancelRequested("a", 0))

    assert not only(bench.at(100), JobForgotten)
    bench.end("a")
    effects = bench.at(200)

    assert only(effects, SendRelease)
    assert only(effects, JobForgotten)


def test_a_flood_of_jobs_that_never_ran_leaves_the_outputs_of_others() -> None:
    """They take a quarter of the room where it is short, and all that nobody else needs. LO-302."""
    bench = Bench(wide(slots=20), finished_jobs_max=8, stale_after_ms=10**6)
    ran = [f"ran{n}" for n in range(6)]
    bench.enqueue(*ran)
    for job_id in ran:
        bench.end(job_id)
    bench.report(wide(slots=20, version=2, state=PoolState.DRAINING))
    flood = [f"flood{n}" for n in range(50)]
    for job_id in flood:
        bench.enqueue(job_id)
        bench.step(CancelRequested(job_id, 0))

    assert list(bench.core.jobs) == [*ran, *flood[-2:]]


def test_the_least_room_is_for_a_job_that_ran() -> None:
    """What never ran goes at once then, the newest too."""
    bench = Bench(wide(), finished_jobs_max=1)
    bench.enqueue("ran")
    bench.end("ran")
    bench.report(wide(version=2, state=PoolState.DRAINING))
    bench.enqueue("dropped")

    assert only(bench.step(CancelRequested("dropped", 0)), JobForgotten)
    assert list(bench.core.jobs) == ["ran"]


def test_jobs_that_never_ran_may_fill_the_room_that_is_left() -> None:
    """Their clients ask for the reason; only what is too much goes, the oldest first."""
    bench = Bench(snapshot(slots_free=0), finished_jobs_max=8, queue_timeout_ms=10)
    jobs = [f"j{n}" for n in range(10)]
    bench.enqueue(*jobs)

    bench.at(10)

    assert list(bench.core.jobs) == jobs[2:]


def test_a_job_is_kept_until_the_journal_confirms_its_end() -> None:
    """A crash would bring it back: its id is taken and its output is held, however long it takes.

    LO-305.
    """
    bench = Bench(wide(), retention_ms=100, stale_after_ms=10**6)
    bench.enqueue("a")
    bench.end("a")

    asked = bench.core.step(Tick(), 100)
    again = bench.core.step(EnqueueRequested(spec("a", digest="another"), 7), 500)
    confirmed = bench.core.step(EndConfirmed("a"), 600)

    assert asked == [ConfirmEnd("a")]
    assert only(again, ReplyRefused)[0].refusal.reason is Reason.DUPLICATE
    assert confirmed == [SendRelease("h", "a", 1), JobForgotten("a")]
    assert not bench.core.jobs


def test_an_ended_job_keeps_everything_but_its_prompt() -> None:
    """Ten thousand retained jobs with large prompts must not fill the memory. LO-302."""
    bench = Bench(wide(), stale_after_ms=10**6)
    labels = (("team", "a"),)
    bench.enqueue("a", "b", payload=b"prompt", labels=labels, seed=7)
    bench.end("a")
    bench.step(CancelRequested("b", 0))

    assert bench.core.jobs["a"].spec == spec("a", labels=labels, seed=7)
    assert bench.core.jobs["b"].spec == spec("b", labels=labels, seed=7)


def test_a_job_that_came_back_is_not_forgotten() -> None:
    """The confirmation of an end that was taken back has no effect."""
    bench = Bench(wide())
    bench.enqueue("a")

    assert bench.core.step(EndConfirmed("a"), 1) == []
    assert bench.core.step(EndConfirmed("unknown"), 1) == []
    assert bench.core.jobs["a"].live


def test_ended_jobs_are_bounded_even_when_many_end_at_once() -> None:
    """Beyond the bound the ones that ended first are forgotten first."""
    bench = Bench(snapshot(slots_free=0), finished_jobs_max=2, queue_timeout_ms=10)
    bench.enqueue("a", "b", "c", "d", "e")

    forgotten = only(bench.at(10), JobForgotten)

    assert [effect.job_id for effect in forgotten] == ["a", "b", "c"]
    assert list(bench.core.jobs) == ["d", "e"]
