"""Who listens to a job: one that is to stop without an audience has a grace period. LO-303."""

from orchestrator_core.core.events import SubscribersChanged
from orchestrator_core.core.job import Job
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import TimerKind


def subscribers_changed(state: State, event: SubscribersChanged, now_ms: int) -> None:
    """Arms or disarms the cancel of a job to which nobody listens."""
    job = state.jobs.get(event.job_id)
    if job is None:
        return
    job.subscribers = event.count
    if job.live:
        watch_audience(state, job, now_ms)


def watch_audience(state: State, job: Job, now_ms: int) -> None:
    """Sets the grace period where a job is to be cancelled without an audience."""
    if job.spec.cancel_on_disconnect and job.subscribers == 0:
        due_ms = now_ms + state.config.disconnect_grace_ms
        state.timers.set(TimerKind.DISCONNECT, job.job_id, due_ms)
    else:
        state.timers.clear(TimerKind.DISCONNECT, job.job_id)
