"""What a start makes of the journal. LO-305."""

from orchestrator_core.core.effects import (
    AcceptRecord,
    DispatchRecord,
    JobForgotten,
    Record,
    ReplyRefused,
    TerminalRecord,
)
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptStarted,
    HeldAttempt,
    Recovered,
)
from orchestrator_core.core.job import Failover
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot


def journal(*effects: object) -> Recovered:
    """The journal of everything that was decided."""
    records: list[Record] = [
        e for e in effects if isinstance(e, AcceptRecord | DispatchRecord | TerminalRecord)
    ]
    return Recovered(
        tuple(only(records, AcceptRecord)),
        tuple(only(records, DispatchRecord)),
        tuple(only(records, TerminalRecord)),
    )


def test_bounds_hold_after_recovery_too() -> None:
    """Of ended jobs and remembered answers the latest are kept, however long the journal is."""
    before = Bench(wide(), queue_capacity=100)
    effects = []
    for n in range(9):
        effects += before.enqueue(f"j{n}", request_id=f"r{n}")
        effects += before.end(f"j{n}")
    after = Bench(finished_jobs_max=3, idempotency_max=4)

    forgotten = only(after.step(journal(*effects)), JobForgotten)

    assert [effect.job_id for effect in forgotten] == [f"j{n}" for n in range(6)]
    assert list(after.core.jobs) == list(after.state.ended) == ["j6", "j7", "j8"]
    assert [known.job_id for known in after.state.remembered.values()] == ["j5", "j6", "j7", "j8"]


def test_the_last_of_several_attempts_is_the_live_one() -> None:
    """Attempts go on being numbered where they were, and arrival numbers too."""
    before = Bench(wide("p"), wide("q"))
    effects = before.enqueue("a")
    effects += before.fail("a", AttemptErrorKind.ENGINE_ERROR)
    after = Bench()

    after.step(journal(*effects))
    after.register(wide("q"), held=[HeldAttempt("a", 2, "q", "q#1", ended=False)])
    after.enqueue("b")

    job = after.core.jobs["a"]
    assert job.attempt is not None
    assert (job.attempts_made, job.attempt.number, job.attempt.pool_id) == (2, 2, "q")
    assert after.core.jobs["b"].seq == 2
    after.end("a", 2)
    assert job.state is JobState.FINISHED


def test_times_of_a_recovered_attempt_teach_nothing() -> None:
    """LO-206: its output arrives at once after the restart; that is no decode rate."""
    before = Bench(wide())
    effects = before.enqueue("a")
    after = Bench()
    after.step(journal(*effects))
    after.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=False)])

    after.step(AttemptStarted("a", 1))
    after.end("a")

    assert after.core.tokens_per_s(after.core.pools["p"]) == 20.0


def test_an_adopted_first_attempt_is_no_replay() -> None:
    """A client is told `resumed` only when something is generated again. LO-304."""
    before = Bench(wide())
    effects = before.enqueue("a", failover=Failover.VERIFIED_REPLAY)
    after = Bench()
    after.step(journal(*effects))
    after.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=False)])

    (started,) = after.step(AttemptStarted("a", 1))

    assert started.mode.value == "fresh"  # type: ignore[union-attr]


def test_a_queued_job_keeps_its_queue_timeout_over_a_restart() -> None:
    """OC-CORE-1022: it has waited since it was accepted."""
    before = Bench(snapshot(slots_free=0), queue_timeout_ms=100)
    effects = before.enqueue("a")
    after = Bench(queue_timeout_ms=100)
    after.step(journal(*effects), 60)

    after.at(99)
    assert after.core.jobs["a"].live
    after.at(100)
    assert after.core.jobs["a"].state is JobState.EXPIRED


def test_a_job_for_a_pool_that_is_not_back_yet_may_come_again() -> None:
    """Soon after a restart nobody knows what the hosts on their way can serve. LO-201, LO-305."""
    before = Bench(wide())
    effects = before.enqueue("a")
    after = Bench(reattach_grace_ms=1_000)
    after.step(journal(*effects))
    after.register(wide(model_id="other"))

    early = only(after.enqueue("b"), ReplyRefused)
    after.at(1_000)
    late = only(after.enqueue("c"), ReplyRefused)

    assert [refused.refusal.reason for refused in early] == [Reason.POOL_UNAVAILABLE]
    assert early[0].refusal.retry_after_ms is not None
    assert [refused.refusal.reason for refused in late] == [Reason.INCOMPATIBLE_MODEL]
