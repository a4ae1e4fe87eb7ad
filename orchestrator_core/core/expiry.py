"""What happens when a deadline comes."""

from typing import assert_never

from orchestrator_core.core import fleet, spending
from orchestrator_core.core.effects import JobForgotten, SendRelease
from orchestrator_core.core.job import Job
from orchestrator_core.core.lifecycle import (
    CANCELLED,
    cancel_unconfirmed,
    end_job,
    expire_job,
    release_former,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState, JobTrigger
from orchestrator_core.core.timers import TimerKind


def expire_due(state: State, now_ms: int) -> None:
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
            case TimerKind.SESSION:
                spending.look_again(state, key, now_ms)
            case TimerKind.FORGET:
                _forget(state, key, now_ms)
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


def _forget(state: State, job_id: str, now_ms: int) -> None:
    """Ends the retention of a job, here and at the pool that holds its output."""
    job = state.jobs.get(job_id)
    if job is None or job.live:
        return
    if job.attempt is not None and job.attempt.key in state.attempts:
        # Its number must not be given out again while the pool has not confirmed the end.
        state.timers.set(TimerKind.FORGET, job_id, now_ms + state.config.retention_ms)
        return
    del state.jobs[job_id]
    state.ended.pop(job_id, None)
    state.timers.clear(TimerKind.FORGET, job_id)
    state.displaced.pop(job_id, None)
    release_former(state, job)
    if job.attempt is not None:
        state.emit(SendRelease(job.attempt.host_id, job_id, job.attempt.number))
    state.emit(JobForgotten(job_id))
