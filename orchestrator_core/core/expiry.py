"""What happens when a deadline comes."""

from typing import assert_never

from orchestrator_core.core import cataloging, fleet, spending
from orchestrator_core.core.effects import ConfirmEnd, JobForgotten
from orchestrator_core.core.events import EndConfirmed
from orchestrator_core.core.job import Job
from orchestrator_core.core.keeping import release_output
from orchestrator_core.core.lifecycle import (
    CANCELLED,
    cancel_unconfirmed,
    end_job,
    end_retention,
    expire_job,
    release_former,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState, JobTrigger
from orchestrator_core.core.timers import TimerKind


def expire_due(state: State, now_ms: int) -> None:  # noqa: C901 - one arm each
    """Handles every deadline that has come, in order of time."""
    while (due := state.timers.pop_due(now_ms)) is not None:
        kind, key = due
        match kind:
            case TimerKind.REATTACH:
                fleet.grace_ended(state, key, now_ms)
            case TimerKind.HOST:
                fleet.retention_ended(state, key, now_ms)
            case TimerKind.DECLINE:
                schedule(state, now_ms)
            case TimerKind.POOL_REOPENS | TimerKind.POOL_STALE:
                _refresh_pool(state, key, now_ms)
            case TimerKind.CANCEL:
                cancel_unconfirmed(state, key, now_ms)
            case TimerKind.MODEL_GRACE:
                cataloging.grace_ended(state, key, now_ms)
            case TimerKind.SESSION:
                spending.look_again(state, key, now_ms)
            case TimerKind.FORGET:
                _retention_over(state, key, now_ms)
            case (
                TimerKind.JOB_DEADLINE
                | TimerKind.QUEUE_TIMEOUT
                | TimerKind.WALL
                | TimerKind.IDLE
                | TimerKind.DISCONNECT
            ):
                _job_due(state, kind, key, now_ms)
            case _:
                assert_never(kind)


def _refresh_pool(state: State, pool_id: str, now_ms: int) -> None:
    pool = state.pools.get(pool_id)
    if pool is not None:
        state.refresh(pool, now_ms)
        schedule(state, now_ms)


def _job_due(state: State, kind: TimerKind, job_id: str, now_ms: int) -> None:
    job = state.jobs.get(job_id)
    if job is None or not job.live:
        return
    if kind is TimerKind.DISCONNECT:
        end_job(state, job, JobTrigger.CANCEL, CANCELLED, now_ms, why="disconnect")
    elif kind is TimerKind.JOB_DEADLINE:
        expire_job(state, job, Reason.DEADLINE, "the deadline came before the end", now_ms)
    elif kind is TimerKind.QUEUE_TIMEOUT:
        if job.state is not JobState.QUEUED:
            return
        expire_job(state, job, Reason.DEADLINE, "the queue timeout came before a slot", now_ms)
    elif kind is TimerKind.IDLE and (idle_ms := _idle_due_ms(state, job)) > now_ms:
        state.timers.set(TimerKind.IDLE, job_id, idle_ms)
        return
    else:
        what = "wall time" if kind is TimerKind.WALL else "time without output"
        message = f"the watchdog for {what} fired"
        budget_ms = job.spec.budgets.time_ms
        if kind is TimerKind.WALL and (budget_ms or now_ms) < state.config.wall_timeout_ms:
            message = f"the job's budget of {budget_ms} ms on a pool is spent"
        expire_job(state, job, Reason.DECODE_TIMEOUT, message, now_ms)
    schedule(state, now_ms)


def _idle_due_ms(state: State, job: Job) -> int:
    """When the idle watchdog really fires: output moves it, and only here that is looked at."""
    assert job.attempt is not None, "only a job with an attempt is watched"
    return job.attempt.last_progress_ms + state.config.idle_timeout_ms


def end_confirmed(state: State, event: EndConfirmed, now_ms: int) -> None:
    """A job will not come back: forgets its prompt, and all of it when its retention is over.

    Without effect while it lives.
    """
    job = state.jobs.get(event.job_id)
    if job is None or job.live:
        return
    if _held(state, job):
        # A host brought its attempt back after the question was asked.
        state.timers.set_by(TimerKind.FORGET, job.job_id, now_ms + state.config.retention_ms)
    if state.timers.is_set(TimerKind.FORGET, job.job_id):
        job.drop_payload()
        state.displaced = {n: v for n, v in state.displaced.items() if v is not job}
        return
    del state.jobs[job.job_id]
    end_retention(state, job.job_id)
    state.displaced.pop(job.job_id, None)
    release_former(state, job)
    release_output(state, job)
    state.emit(JobForgotten(job.job_id))


def _retention_over(state: State, job_id: str, now_ms: int) -> None:
    """Asks whether a job may be forgotten: as long as its end is not durable it may come back."""
    job = state.jobs.get(job_id)
    if job is None or job.live:
        return
    if _held(state, job):
        # Its number must not be given out again while the pool has not confirmed the end.
        state.timers.set(TimerKind.FORGET, job_id, now_ms + state.config.retention_ms)
        return
    state.emit(ConfirmEnd(job_id))


def _held(state: State, job: Job) -> bool:
    """True while a pool has not confirmed that a job's attempt is over."""
    return job.attempt is not None and job.attempt.key in state.attempts
