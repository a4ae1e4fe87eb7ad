"""What a pause of the event loop changes: nobody was heard, so nobody was silent. OC-CORE-1022.

Only what judges others by their silence is extended. Deadlines, queue timeouts and wall times are
promises about real time and stay. How long anything took says little where a pause was much of it:
after a machine has slept, an hour for some tokens is no lesson about a pool.
"""

from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import TimerKind

SILENCE = frozenset({TimerKind.REATTACH, TimerKind.DISCONNECT, TimerKind.HOST, TimerKind.FORGET})


def extend(state: State, pause_ms: int, now_ms: int) -> None:
    """Extends liveness by a pause that ends now. O(jobs + pools + deadlines)."""
    for attempt in state.attempts.values():
        # The idle watchdog looks at this when it is due.
        attempt.last_progress_ms = min(now_ms, attempt.last_progress_ms + pause_ms)
        attempt.paused_ms += pause_ms
    for job in state.jobs.values():
        if job.live:
            job.paused_ms += pause_ms
    state.drain.paused(pause_ms, now_ms)
    state.timers.postpone(SILENCE, pause_ms)
    if state.hosts_due_ms > now_ms - pause_ms:
        # Hosts were on their way back when the pause began, and could not come meanwhile.
        state.hosts_due_ms += pause_ms
    for pool in state.pools.values():
        pool.as_of_ms = min(now_ms, pool.as_of_ms + pause_ms)
        state.refresh(pool, now_ms)
    schedule(state, now_ms)
