"""Moving jobs and attempts through their state tables, with everything that goes with it."""

from orchestrator_core.core import fairness, gates, spending
from orchestrator_core.core.effects import (
    AttemptClosed,
    CancelUnconfirmed,
    JobEnded,
    SendCancel,
    SendRelease,
)
from orchestrator_core.core.forecast import learn_from_end
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.outcome import Finish, Outcome, Reason, Refusal, Usage
from orchestrator_core.core.records import TerminalRecord
from orchestrator_core.core.spec import Failover
from orchestrator_core.core.state import State
from orchestrator_core.core.states import (
    AttemptState,
    AttemptTrigger,
    JobState,
    JobTrigger,
    next_attempt_state,
    next_job_state,
)
from orchestrator_core.core.timers import TimerKind

# Each attempt that never ran, refused or not held, costs a record in the journal: beyond so many of
# a job the next is a try that failed, or it would go on for ever.
REFUSALS_MAX = 1_000
LIVE_TIMERS = (
    TimerKind.JOB_DEADLINE,
    TimerKind.QUEUE_TIMEOUT,
    TimerKind.WALL,
    TimerKind.IDLE,
    TimerKind.DISCONNECT,
    TimerKind.DECLINE,
)

# Ends that say how good a prediction was. A cancel or a failure says nothing about it.
_TELLING = frozenset({JobState.FINISHED, JobState.EXPIRED})


def enter_queue(state: State, job: Job, now_ms: int) -> None:
    """Puts a job into the queue and sets its queue timeout. OC-CORE-1022.

    A job that never ran has waited since it was accepted, however often pools refused it.
    """
    fairness.lift(state, job.spec)
    job.shape = state.predictor.shape(job.spec)
    state.queue.add(job)
    state.throttle.entered(job.spec.identity)
    state.drain.entered(now_ms)
    span_ms = job.spec.queue_timeout_ms or state.config.queue_timeout_ms
    never_ran = job.started_ms is None and not job.delivered
    since_ms = job.accepted_ms if never_ran else now_ms
    state.timers.set(TimerKind.QUEUE_TIMEOUT, job.job_id, since_ms + span_ms)
    if job.spec.needs.model_id in state.catalog.closed:
        # No pool takes it any more: it ends with this step.
        state.timers.set(TimerKind.MODEL_GRACE, job.spec.needs.model_id, now_ms)
    if job.declined_since_ms is not None:
        # It waits again: what it may still decline ends when it did before.
        due_ms = job.declined_since_ms + state.config.decline_max_ms
        state.timers.set(TimerKind.DECLINE, job.job_id, due_ms)
    if job.spec.deadline_ms is not None:
        state.timers.set(TimerKind.JOB_DEADLINE, job.job_id, job.spec.deadline_ms)


def leave_queue(state: State, job: Job, now_ms: int, *, displaced: bool = False) -> None:
    """Takes a waiting job out and counts the place that this frees for the drain rate.

    A job that never waited held none, a displaced one hands it to its successor, and a retry is
    exempt from capacity.
    """
    state.queue.remove(job)
    state.timers.clear(TimerKind.QUEUE_TIMEOUT, job.job_id)
    if job.declined_since_ms is not None:
        state.timers.clear(TimerKind.DECLINE, job.job_id)
    state.throttle.left(job.spec.identity)
    freed = not displaced and not job.attempts_made and now_ms > job.accepted_ms
    state.drain.left(len(state.queue), now_ms, freed=freed)


def end_job(
    state: State,
    job: Job,
    trigger: JobTrigger,
    outcome: Outcome,
    now_ms: int,
    why: str = "",
) -> None:
    """Brings a job to its one terminal state. ORCH-3026.

    A running attempt is told to stop; its slot stays taken until the pool confirms. The prompt,
    which may be large, is not needed any more, unless a displaced job comes back.
    """
    if job.state is JobState.QUEUED:
        leave_queue(state, job, now_ms, displaced=trigger is JobTrigger.DROP)
    job.state = next_job_state(job.state, trigger)
    job.outcome = outcome
    if trigger is not JobTrigger.DROP:
        job.drop_payload()
    job.ended_ms = now_ms
    job.usage = _final_usage(job, now_ms)
    gates.settle(state, job, job.usage, now_ms)
    fairness.settle(state, job, job.usage)
    state.timers.clear_all(LIVE_TIMERS, job.job_id)
    attempt = job.attempt
    if attempt is not None and attempt.state in (AttemptState.SENT, AttemptState.RUNNING):
        attempt.state = next_attempt_state(attempt.state, AttemptTrigger.STOP)
        send_cancel(state, attempt, now_ms)
    if attempt is None or attempt.key not in state.attempts:
        # Else its pool will tell what it took.
        spending.settle(state, job, job.usage, now_ms)
    if job.state in _TELLING:
        learn_from_end(state, job, now_ms, finished=job.state is JobState.FINISHED)
    state.emit(TerminalRecord(job.job_id, job.state, outcome, job.usage, now_ms))
    state.emit(JobEnded(job.job_id, job.state, outcome, job.usage, why))
    retain(state, job, now_ms)


def retain(state: State, job: Job, now_ms: int) -> None:
    """Keeps an ended job until retention ends; beyond the bound the oldest is forgotten first.

    Of those that never ran, while they take more than a quarter of the room: a flood of jobs that
    are dropped or cancelled in the queue must not expel the outputs of others.
    """
    due_ms = (job.ended_ms or now_ms) + state.config.retention_ms
    state.timers.set(TimerKind.FORGET, job.job_id, due_ms)
    (state.ended if job.attempts_made else state.ended_unrun)[job.job_id] = None
    forget_beyond_bound(state, now_ms)


def forget_beyond_bound(state: State, now_ms: int) -> None:
    """Ends the retention of ended jobs that are too many."""
    bound = state.config.finished_jobs_max
    while len(state.ended) + len(state.ended_unrun) > bound:
        crowding = len(state.ended_unrun) > bound // 4
        oldest, _ = (state.ended_unrun if crowding else state.ended).popitem(last=False)
        state.timers.set(TimerKind.FORGET, oldest, now_ms)


def end_retention(state: State, job_id: str) -> None:
    """An ended job is forgotten, or lives again."""
    state.ended.pop(job_id, None)
    state.ended_unrun.pop(job_id, None)
    state.timers.clear(TimerKind.FORGET, job_id)


def send_cancel(state: State, attempt: Attempt, now_ms: int) -> None:
    """Tells a host to stop an attempt whose job ended, and sets the time for it to confirm."""
    attempt.cancels += 1
    job = state.jobs.get(attempt.job_id)
    cancelled = job is not None and job.state is JobState.CANCELLED
    state.emit(SendCancel(attempt.host_id, attempt.job_id, attempt.number, cancelled))
    due_ms = now_ms + state.config.cancel_timeout_ms
    state.timers.set(TimerKind.CANCEL, attempt.job_id, due_ms)


def cancel_unconfirmed(state: State, job_id: str, now_ms: int) -> None:
    """Sends a cancel again that nobody confirmed; from the second time on, closes the pool.

    What keeps a slot against its orders may keep others too. The pool opens again when the end is
    confirmed, or its incarnation is gone.
    """
    job = state.jobs.get(job_id)
    attempt = job.attempt if job is not None else None
    if attempt is None or attempt.state is not AttemptState.CANCELLING:
        return
    pool = state.pools.get(attempt.pool_id)
    if pool is not None and attempt.cancels > 1 and attempt.key in pool.own:
        if attempt.key not in pool.unconfirmed:
            state.emit(CancelUnconfirmed(job_id, attempt.number, attempt.pool_id))
        pool.unconfirmed.add(attempt.key)
        state.refresh(pool, now_ms)
    send_cancel(state, attempt, now_ms)


def fail_job(state: State, job: Job, refusal: Refusal, now_ms: int) -> None:
    """Ends a job that cannot be completed."""
    end_job(state, job, JobTrigger.FAIL, Outcome(error=refusal), now_ms)


def expire_job(state: State, job: Job, reason: Reason, message: str, now_ms: int) -> None:
    """Ends a job whose deadline, queue timeout or watchdog fired. OC-CORE-1022."""
    engine = job.spec.needs.engine
    refusal = Refusal(reason, message, engine=engine, pool_id=_pool_of(job))
    end_job(state, job, JobTrigger.EXPIRE, Outcome(error=refusal), now_ms, why="expired")


def close_attempt(state: State, attempt: Attempt, frame_seq: int, now_ms: int) -> None:
    """Ends an attempt: the slot is free by the orchestrator's account."""
    attempt.state = next_attempt_state(attempt.state, AttemptTrigger.END)
    state.attempts.pop(attempt.key, None)
    if attempt.cancels:
        state.timers.clear(TimerKind.CANCEL, attempt.job_id)
    pool = state.pools.get(attempt.pool_id)
    if pool is not None:
        pool.forget(attempt.key, frame_seq)
        state.refresh(pool, now_ms)
    job = state.jobs.get(attempt.job_id)
    if job is not None and job.attempt is attempt and not job.live:
        spending.settle(state, job, job.usage, now_ms)


def retry_or_fail(
    state: State, job: Job, refusal: Refusal, now_ms: int, *, replica_gone: bool
) -> None:
    """After a lost attempt: back into the queue where that is allowed, else the end. LO-304.

    Nothing delivered: a silent restart. Something delivered: generated again, continued, or ended
    by WORKER_RESET, as the job's policy says. The attempt must be closed already. `replica_gone`
    says that it was lost with its incarnation or its host, which proves nothing against the
    replica: should it be back it may be tried again.
    """
    attempt = job.attempt
    assert attempt is not None, "only a job with an attempt can lose one"
    if job.delivered and job.spec.failover is Failover.FAIL:
        if refusal.reason is not Reason.ENGINE_ERROR:
            refusal = Refusal(
                Reason.WORKER_RESET,
                f"the engine of pool {attempt.pool_id} was lost after output had been delivered: "
                f"{refusal.message}; enqueue the job again, or set failover to "
                "VERIFIED_REPLAY or CONTINUE",
                engine=refusal.engine,
                pool_id=attempt.pool_id,
            )
        _close(state, job, attempt, "failed", retried=False)
        fail_job(state, job, refusal, now_ms)
        return
    job.failures += 1
    if not replica_gone:
        job.tried_replicas.add(attempt.replica_id)
    if _exhausted(state, job, replica_gone=replica_gone):
        exhausted = Refusal(
            Reason.REPLICA_EXHAUSTED,
            f"{job.failures} attempts failed, the last on pool {attempt.pool_id}: "
            f"{refusal.message}",
            engine=refusal.engine,
            pool_id=attempt.pool_id,
            metadata={"last_reason": refusal.reason.value},
        )
        _close(state, job, attempt, "failed", retried=False)
        fail_job(state, job, exhausted, now_ms)
        return
    close_for_retry(state, job, attempt)
    # Until an attempt is durable that says so, only its host can prove that output was delivered.
    proves = job.delivered and (job.unreleased is None or attempt.started_ms is not None)
    if proves:
        release_former(state, job)
        job.unreleased = attempt
    else:
        state.emit(SendRelease(attempt.host_id, job.job_id, attempt.number))
    requeue(state, job, now_ms)


def release_former(state: State, job: Job) -> None:
    """Lets a host forget the attempt that another has replaced."""
    former, job.unreleased = job.unreleased, None
    if former is not None:
        state.emit(SendRelease(former.host_id, former.job_id, former.number))


def requeue(state: State, job: Job, now_ms: int) -> None:
    """Puts a job back at its old place; exempt from capacity (design 5.1)."""
    job.state = next_job_state(job.state, JobTrigger.RETRY)
    job.attempt = None
    state.timers.clear(TimerKind.IDLE, job.job_id)
    state.timers.clear(TimerKind.WALL, job.job_id)
    enter_queue(state, job, now_ms)


def close_for_retry(state: State, job: Job, attempt: Attempt) -> None:
    """Says that an attempt no longer counts and another will follow."""
    _close(state, job, attempt, "lost", retried=True)


def _close(state: State, job: Job, attempt: Attempt, why: str, *, retried: bool) -> None:
    state.emit(AttemptClosed(job.job_id, attempt.number, why, retried))


def _exhausted(state: State, job: Job, *, replica_gone: bool) -> bool:
    """True when no further replica may be tried; one that is gone makes room for the next.

    Once output was delivered a replay counts only the replica set that generated it.
    """
    if job.failures >= state.config.attempts_max:
        return True
    feasible = (pool.snapshot for pool in state.feasible(job.spec.needs).pools.values())
    return not replica_gone and all(
        snapshot.replica_id in job.tried_replicas
        for snapshot in feasible
        if job.bound_to in (None, snapshot.replica_set)
    )


def _final_usage(job: Job, now_ms: int) -> Usage:
    """Combines the engine's counts with the orchestrator's times."""
    usage = job.usage
    first_ms, dispatched_ms = job.first_output_ms, job.first_dispatch_ms
    waited_until_ms = now_ms if dispatched_ms is None else dispatched_ms
    return Usage(
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        queue_time_ms=waited_until_ms - job.accepted_ms,
        first_token_ms=None if first_ms is None else first_ms - job.accepted_ms,
        decode_time_ms=_decode_time_ms(job, now_ms),
    )


def _decode_time_ms(job: Job, now_ms: int) -> int | None:
    """The engine's own figure, which knows what came with the first output; else what was seen."""
    first_ms, dispatched_ms = job.first_output_ms, job.first_dispatch_ms
    if first_ms is None:
        return None
    told_ms = job.usage.decode_time_ms
    if told_ms is None or dispatched_ms is None:
        return now_ms - first_ms
    return min(told_ms, now_ms - dispatched_ms)


def _pool_of(job: Job) -> str:
    return job.attempt.pool_id if job.attempt else ""


CANCELLED = Outcome(finish=Finish.CANCELLED)
