"""What the checks of a random world go by: rules of the core, written again and plainly."""

from orchestrator_core.core.feasibility import static_shortfalls
from orchestrator_core.core.job import Job
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Failover, StartMode
from orchestrator_core.core.state import State


def waiting_in(queue: object) -> list[Job]:
    """The jobs of one class in the order of their arrival."""
    return sorted(queue._by_seq.values(), key=lambda j: j.seq)  # type: ignore[attr-defined]


def is_open(state: State, pool: Pool, now_ms: int) -> bool:
    """The pool has a slot for a job, and may be given one now."""
    taken = len(set(pool.own) | set(pool.reported))
    foreign = pool.snapshot.slots_total - pool.snapshot.slots_free - len(pool.snapshot.running)
    return (
        pool.connected
        and pool.snapshot.state is PoolState.READY
        and pool.snapshot.pool_id not in state.drains
        and not pool.retired
        and now_ms - pool.as_of_ms <= state.config.stale_after_ms
        and pool.closed_until_ms <= now_ms
        and not pool.unconfirmed
        and taken + max(0, foreign) < pool.snapshot.slots_total
    )


def could_ever_run(job: Job, pool: Pool) -> bool:
    """The pool could serve the job, perhaps once others have left."""
    if static_shortfalls(job.spec.needs, pool.snapshot):
        return False
    if pool.snapshot.replica_id in job.tried_replicas:
        return False
    replays = job.delivered and job.spec.failover is Failover.VERIFIED_REPLAY
    if replays and job.replica_set not in (None, pool.snapshot.replica_set):
        return False
    needed, most = job.spec.est_kv_bytes, pool.room_idle_bytes
    return needed is None or most is None or needed <= most


def same_client(job: Job, other: Job) -> bool:
    """Both belong to one client identity."""
    return job.spec.identity == other.spec.identity


def declines(state: State, job: Job, now_ms: int) -> bool:
    """The job lets slots pass, which it may do for so long."""
    since_ms = job.declined_since_ms
    return since_ms is not None and now_ms - since_ms < state.config.decline_max_ms


def fits_now(job: Job, pool: Pool) -> bool:
    """There is room for its keys and values."""
    room = pool.kv_room_bytes()
    return room is None or job.spec.est_kv_bytes is None or job.spec.est_kv_bytes <= room


def assert_goes_on(job: Job, effect: DispatchRecord) -> None:
    """LO-304: an attempt begins anew only while no client has output of an earlier one."""
    wanted = StartMode.FRESH if not job.delivered else StartMode[job.spec.failover.name]
    assert effect.mode is wanted
    assert effect.failures == job.failures < effect.attempt


def assert_within_bounds(state: State, effect: DispatchRecord) -> None:
    """LO-204: what was just placed has a slot and memory, whatever the host has noticed so far."""
    pool = state.pools[effect.pool_id]
    assert pool.occupied() <= pool.snapshot.slots_total
    if pool.room_idle_bytes is not None:
        estimated = sum(a.est_kv_bytes for a in pool.own.values())
        assert estimated <= pool.room_idle_bytes
