"""What a start makes of the journal. LO-305."""

import pytest

from orchestrator_core.core.effects import JobForgotten, JobStarted, ReplyRefused
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    HeldAttempt,
    OutputProgressed,
    Recovered,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.records import DispatchRecord, PoolDrainRecord, TerminalRecord
from orchestrator_core.core.spec import Failover, StartMode
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide
from tests.unit.orchestrator_core.core.build import snapshot
from tests.unit.orchestrator_core.core.journals import journal


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


def test_a_wait_through_a_restart_teaches_nothing() -> None:
    """LO-206: an hour without a pool is no lesson."""
    before = Bench(wide(slots=1))
    effects = before.enqueue("a", "b")
    effects += before.end("a")
    waited = before.core.jobs["b"].plain_start_ms
    after = Bench()
    after.step(journal(*[e for e in effects if getattr(e, "job_id", "") != "b"]))
    after.at(3_500_000)

    after.register(wide(slots=1))
    after.end("b")

    assert after.core.jobs["b"].state is JobState.FINISHED
    assert after.core.jobs["b"].plain_start_ms == waited is not None
    residuals = after.state.predictor.residuals
    assert not residuals.start.kept
    assert not residuals.judged


def test_the_number_of_tries_survives_a_restart() -> None:
    """LO-304: a job that kills engines is given up after so many, whatever else restarts."""
    died = AttemptErrorKind.ENGINE_DIED
    before = Bench(wide("p"), wide("q"), attempts_max=3)
    effects = before.enqueue("a")
    effects += before.fail("a", died)
    effects += before.fail("a", died, attempt=2)
    anew = wide("p", replica_id="p#2")
    effects += before.report(anew)
    after = Bench(attempts_max=3)
    after.step(journal(*effects))
    after.register(anew, wide("q"), held=[HeldAttempt("a", 3, "p", "p#2", ended=False)])

    effects = after.fail("a", died, attempt=3)

    (ended,) = only(effects, TerminalRecord)
    assert ended.outcome.error is not None
    assert ended.outcome.error.reason is Reason.REPLICA_EXHAUSTED


def test_replicas_that_were_tried_are_known_after_a_restart() -> None:
    """LO-304: every feasible replica tried is the end, whoever counted."""
    broken = AttemptErrorKind.ENGINE_ERROR
    before = Bench(wide("p"), wide("q"))
    effects = before.enqueue("a")
    effects += before.fail("a", broken)
    second = only(effects, DispatchRecord)[-1]
    after = Bench()
    after.step(journal(*effects))
    held = HeldAttempt("a", 2, second.pool_id, second.replica_id, ended=False)
    after.register(wide("p"), wide("q"), held=[held])

    effects = after.fail("a", broken, attempt=2)

    assert len(second.tried) == 1
    assert second.replica_id not in second.tried
    (ended,) = only(effects, TerminalRecord)
    assert ended.outcome.error is not None
    assert ended.outcome.error.reason is Reason.REPLICA_EXHAUSTED


def test_refusals_are_counted_over_restarts() -> None:
    """LO-304: each costs a record, so that pools may refuse a job only so often."""
    before = Bench(wide("p"))
    effects = before.enqueue("a")
    effects += before.step(AttemptRefused("a", 1, "no_slot", "all slots are taken"))
    before.at(60_000)
    effects += before.report(wide("p"))
    after = Bench()
    after.step(journal(*effects))

    assert [record.refusals for record in only(effects, DispatchRecord)] == [0, 1]
    assert after.core.jobs["a"].refusals == 1


def test_an_attempt_that_ended_without_output_is_restarted_silently() -> None:
    """LO-304: what a restart left open, whether a client has text, its host has told by then."""
    before = Bench(wide("p"), wide("q"))
    effects = before.enqueue("a", failover=Failover.FAIL)
    after = Bench()
    after.step(journal(*effects))
    after.register(wide("p"), wide("q"), held=[HeldAttempt("a", 1, "p", "p#1", ended=False)])
    after.step(AttemptStarted("a", 1))

    effects = after.fail("a", AttemptErrorKind.ENGINE_DIED)

    (dispatch,) = only(effects, DispatchRecord)
    assert (dispatch.attempt, dispatch.pool_id, dispatch.mode) == (2, "q", StartMode.FRESH)


def test_a_continuation_is_still_one_after_a_restart() -> None:
    """LO-304: its host goes on with it, and its followers are told what it is."""
    before = Bench(wide("p"), wide("q"))
    effects = before.enqueue("a", failover=Failover.CONTINUE)
    before.step(AttemptStarted("a", 1))
    before.step(OutputProgressed("a", 1, 1))
    effects += before.fail("a", AttemptErrorKind.ENGINE_DIED)
    after = Bench()
    after.step(journal(*effects))
    after.register(wide("p"), wide("q"), held=[HeldAttempt("a", 2, "q", "q#1", ended=False)])

    (started,) = only(after.step(AttemptStarted("a", 2, kv_warmth=True)), JobStarted)

    assert started.mode is StartMode.CONTINUE
    assert not started.kv_warmth, "ORCH-3009"


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


@pytest.mark.parametrize("known", ["job", "drain"])
def test_a_job_for_a_pool_that_is_not_back_yet_may_come_again(known: str) -> None:
    """Soon after a restart nobody knows what the hosts on their way can serve. LO-201, LO-305.

    Also after a quiet time, when the journal has no job any more.
    """
    before = Bench(wide())
    effects = before.enqueue("a")
    drained = Recovered(drains=(PoolDrainRecord("p", 0, 9_000),))
    after = Bench(reattach_grace_ms=1_000)
    after.step(journal(*effects) if known == "job" else drained)
    first = refusal(after.enqueue("a0"))
    after.register(wide(model_id="other"))

    early = only(after.enqueue("b"), ReplyRefused)
    after.at(1_000)
    late = only(after.enqueue("c"), ReplyRefused)

    restarted = "the orchestrator was restarted, and hosts that are not back yet have 1 s more"
    assert first.message == f"no pool is registered yet: {restarted}"
    assert [refused.refusal.reason for refused in early] == [Reason.POOL_UNAVAILABLE]
    assert early[0].refusal.message == (
        f"no registered pool has model 'm': there are other; {restarted}"
    )
    assert early[0].refusal.retry_after_ms is not None
    assert [refused.refusal.reason for refused in late] == [Reason.INCOMPATIBLE_MODEL]
