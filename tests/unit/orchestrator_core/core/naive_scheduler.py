"""A second, naive scheduler, written from design 5.2 and not from the code.

It answers one question from scratch: who is placed next, and where? Nobody declines, the bound on
looking ahead is out of reach, and identities do not matter. Quadratic and obvious on purpose.
"""

from collections.abc import Mapping
from dataclasses import replace

from orchestrator_core.core.job import Job
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.spec import Failover, Priority
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.oracle import Question, eligible, memory_left, naive_winner


def next_placement(
    state: State, kept_so_far: Mapping[str, str], now_ms: int
) -> tuple[str, str] | None:
    """The job that gets a slot before all others and the pool that it gets; None for nobody.

    `kept_so_far` are pools that this step keeps for older jobs already.
    """
    waiting = in_order(state)
    interactive = [job for job in waiting if job.spec.priority is Priority.INTERACTIVE]
    batch = [job for job in waiting if job.spec.priority is Priority.BATCH]
    its_turn = state.batch_credit >= state.config.turns[0]
    kept = dict(kept_so_far)
    for job in batch + interactive if its_turn else interactive + batch:
        ask = question(state, job, kept, now_ms)
        pool_id = naive_winner(ask)
        if pool_id is not None:
            return job.job_id, pool_id
        # What it lacks nothing for but memory is closed to everybody after it.
        kept.update({p.snapshot.pool_id: job.job_id for p in ask.pools if lacks_memory(ask, p)})
    return None


def in_order(state: State) -> list[Job]:
    """Everybody who waits, in order of arrival."""
    queued = (job for job in state.jobs.values() if job.state is JobState.QUEUED)
    return sorted(queued, key=lambda job: job.seq)


def kept_for_somebody(state: State, now_ms: int) -> dict[str, str]:
    """Every pool on which a waiting job lacks nothing but memory, and such a job."""
    kept: dict[str, str] = {}
    for job in in_order(state):
        ask = question(state, job, {}, now_ms)
        kept |= {p.snapshot.pool_id: job.job_id for p in ask.pools if lacks_memory(ask, p)}
    return kept


def question(state: State, job: Job, kept: dict[str, str], now_ms: int) -> Question:
    """What the placement of one job is about. Output is repeated by the same replicas only."""
    replays = job.delivered and job.spec.failover is Failover.VERIFIED_REPLAY
    replay_at = job.replica_set if replays else None
    pools = [
        pool
        for pool_id, pool in state.pools.items()
        if replay_at in (None, pool.snapshot.replica_set)
        # A pool that rests does so until its timer was handled, it starts anew, or whatever else
        # was due in the same step let it be looked at.
        and not (
            pool.closed_until_ms
            and (TimerKind.POOL_REOPENS, pool_id) in state.timers._due
            and pool_id not in state.available
        )
    ]
    return Question(
        spec=job.spec,
        pools=pools,
        now_ms=now_ms,
        stale_after_ms=state.config.stale_after_ms,
        scoring=state.config.performance_scoring,
        warm_pool_id="",
        tried=frozenset(job.tried_replicas),
        reserved=kept,
    )


def lacks_memory(ask: Question, pool: Pool) -> bool:
    """The pool would take the job, were there more memory, and has that much when it is idle."""
    needed, left = ask.spec.est_kv_bytes, memory_left(pool)
    if needed is None or left is None or needed <= left:
        return False
    asked = replace(ask, spec=replace(ask.spec, est_kv_bytes=None))
    return eligible(asked, pool) and (
        pool.room_idle_bytes is None or needed <= pool.room_idle_bytes
    )
