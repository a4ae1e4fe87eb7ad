"""What a failed commit takes back: jobs that nobody was told of, and what their accept changed."""

from orchestrator_core.core import fairness, spending
from orchestrator_core.core.audience import watch_audience
from orchestrator_core.core.effects import AttemptClosed, JobForgotten
from orchestrator_core.core.events import AcceptsFailed
from orchestrator_core.core.gates import charge_again, give_back
from orchestrator_core.core.job import Job
from orchestrator_core.core.lifecycle import (
    LIVE_TIMERS,
    close_attempt,
    end_retention,
    enter_queue,
    leave_queue,
)
from orchestrator_core.core.outcome import NO_USAGE
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState


def accepts_failed(state: State, event: AcceptsFailed, now_ms: int) -> None:
    """Takes accepts back that were never durable; their victims return to their old places."""
    for job_id in reversed(event.job_ids):
        job = state.jobs.pop(job_id, None)
        if job is None:
            continue
        _retract(state, job, now_ms)
        victim = state.displaced.pop(job_id, None)
        # A victim that was forgotten since may have lent its id to a newer job.
        if victim is not None and state.jobs.get(victim.job_id, victim) is victim:
            _restore(state, victim, now_ms)
    # A job that never was cannot come back when the one that displaced it is taken back later.
    gone = frozenset(event.job_ids)
    state.displaced = {n: v for n, v in state.displaced.items() if v.job_id not in gone}
    schedule(state, now_ms)


def _restore(state: State, victim: Job, now_ms: int) -> None:
    """Puts a dropped job back as if it had never been dropped, even if it was forgotten since."""
    victim.state, victim.outcome, victim.ended_ms = JobState.QUEUED, None, None
    victim.usage = NO_USAGE
    state.jobs[victim.job_id] = victim
    end_retention(state, victim.job_id)
    enter_queue(state, victim, now_ms)
    charge_again(state, victim, now_ms)
    spending.join(state, victim, now_ms)
    watch_audience(state, victim, now_ms)


def _retract(state: State, job: Job, now_ms: int) -> None:
    """Removes every trace of a job that was never accepted."""
    if job.state is JobState.QUEUED:
        leave_queue(state, job, now_ms, displaced=True)
    give_back(state, job, now_ms)
    spending.give_back(state, job)
    fairness.give_back(state, job)
    if job.attempt is not None and job.attempt.key in state.attempts:
        close_attempt(state, job.attempt, 0, now_ms)
        state.emit(AttemptClosed(job.job_id, job.attempt.number, "not accepted", retried=False))
    end_retention(state, job.job_id)
    state.timers.clear_all(LIVE_TIMERS, job.job_id)
    state.remembered.pop((job.spec.identity, job.spec.request_id), None)
    state.emit(JobForgotten(job.job_id))
