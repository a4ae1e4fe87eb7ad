"""Other bounds and policies while jobs wait and run. HME-003.

What was accepted stays accepted: a lower bound refuses newcomers until there is room, and forgets
only what it may forget at any time. A wait that has begun becomes longer or shorter by as much as
its setting did.
"""

from orchestrator_core.core import fairness, spending
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.job import Job
from orchestrator_core.core.lifecycle import forget_beyond_bound
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import TimerKind


def reconfigure(state: State, config: CoreConfig, now_ms: int) -> None:
    """Goes on with other settings from here. O(jobs + deadlines)."""
    former, state.config = state.config, config
    state.throttle.reconfigure(config.throttle, now_ms)
    _move_deadlines(state, former)
    _keep_bounds(state, now_ms)
    # Whether pools may leave the digest open is part of what the next jobs get from the catalog.
    state.catalog.resolved.clear()
    if config.token_fairness != former.token_fairness:
        fairness.switch(state)
    interactive, batch = config.turns
    state.batch_credit = min(state.batch_credit, interactive + batch - 1)
    if config.stale_after_ms != former.stale_after_ms:
        for pool in state.pools.values():
            state.refresh(pool, now_ms)
    # Who waits may be placed by the new rules although nothing else happens.
    schedule(state, now_ms)


def _move_deadlines(state: State, former: CoreConfig) -> None:
    """Moves what was set by the former spans."""
    config, timers = state.config, state.timers
    for kind, by_ms in (
        (TimerKind.FORGET, config.retention_ms - former.retention_ms),
        (TimerKind.IDLE, config.idle_timeout_ms - former.idle_timeout_ms),
        (TimerKind.DISCONNECT, config.disconnect_grace_ms - former.disconnect_grace_ms),
        (TimerKind.DECLINE, config.decline_max_ms - former.decline_max_ms),
        (TimerKind.CANCEL, config.cancel_timeout_ms - former.cancel_timeout_ms),
        (TimerKind.SESSION, config.session_ttl_ms - former.session_ttl_ms),
        (TimerKind.HOST, config.host_retention_ms - former.host_retention_ms),
    ):
        if by_ms:
            timers.postpone((kind,), by_ms)
    queued_ms = config.queue_timeout_ms - former.queue_timeout_ms
    if not queued_ms and config.wall_timeout_ms == former.wall_timeout_ms:
        return
    for job in state.jobs.values():
        if not job.spec.queue_timeout_ms:
            timers.move(TimerKind.QUEUE_TIMEOUT, job.job_id, queued_ms)
        wall_ms = _wall_ms(job, config) - _wall_ms(job, former)
        timers.move(TimerKind.WALL, job.job_id, wall_ms)


def _wall_ms(job: Job, config: CoreConfig) -> int:
    return min(config.wall_timeout_ms, job.spec.budgets.time_ms or config.wall_timeout_ms)


def _keep_bounds(state: State, now_ms: int) -> None:
    """Forgets what lies beyond lower bounds, the oldest first."""
    config = state.config
    forget_beyond_bound(state, now_ms)
    while len(state.remembered) > config.idempotency_max:
        state.remembered.popitem(last=False)
    while len(state.sessions) > config.sessions_max:
        idle = state.sessions.oldest_idle()
        if idle is None:
            break
        spending.forget(state, idle)
    while len(state.outlooks) > config.lanes_max:
        del state.outlooks[next(iter(state.outlooks))]
