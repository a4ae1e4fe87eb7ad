"""Which output of ended jobs hosts keep: what fits beside what runs. LO-302, LO-305.

A host that holds as many attempts as it may refuses new ones, so the oldest are released before
their retention is over. A release waits until the end of its job is durable, like every other.
"""

from collections import OrderedDict

from orchestrator_core.core.effects import SendRelease, Verdict
from orchestrator_core.core.events import HostRegistered
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.state import Host, State

# The rest is for attempts that run, and for releases on their way.
_KEPT_OF_HELD = (3, 4)


def keep_adopted(
    state: State, event: HostRegistered, verdicts: tuple[tuple[str, int, Verdict], ...]
) -> None:
    """A host said how much it may hold: takes over what it was told to keep of ended jobs."""
    host = state.hosts[event.host_id]
    held_max = event.held_attempts_max
    host.kept_max = held_max * _KEPT_OF_HELD[0] // _KEPT_OF_HELD[1] if held_max else None
    told = [(job_id, number) for job_id, number, verdict in verdicts if verdict is Verdict.ADOPT]
    host.kept = OrderedDict.fromkeys(key for key in told if _is_last_of_ended(state, *key))
    _release_oldest(state, host)


def _is_last_of_ended(state: State, job_id: str, number: int) -> bool:
    """False for what runs still, and for the proof of what was delivered of a live job."""
    job = state.jobs.get(job_id)
    over = job is not None and not job.live and job.attempts_made == number
    return over and (job_id, number) not in state.attempts


def keep_output(state: State, attempt: Attempt) -> None:
    """A pool confirmed the end of an attempt whose job is over."""
    host = state.hosts.get(attempt.host_id)
    if host is not None:
        host.kept[attempt.key] = None
        _release_oldest(state, host)


def release_output(state: State, job: Job) -> None:
    """Nobody will ask for it: lets the host forget the last attempt of an ended job."""
    key = job.job_id, job.attempts_made
    if job.attempt is not None:
        host = state.hosts.get(job.attempt.host_id)
        if host is not None:
            host.kept.pop(key, None)
        state.emit(SendRelease(job.attempt.host_id, *key))
        return
    # It ended in the queue: whoever still brought that attempt back is not known to the job.
    for host in state.hosts.values():
        if key in host.kept:
            del host.kept[key]
            state.emit(SendRelease(host.host_id, *key))


def _release_oldest(state: State, host: Host) -> None:
    while host.kept_max is not None and len(host.kept) > host.kept_max:
        (job_id, number), _ = host.kept.popitem(last=False)
        state.emit(SendRelease(host.host_id, job_id, number))
