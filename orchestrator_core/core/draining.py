"""Draining of pools by an operator: taking no more work, while what runs goes on. OC-CTRL-2002.

The orchestrator's word counts. It is written to the journal, and told to the pool's host again with
each registration; a host that drains a pool of which nothing is known here takes work again. The
host keeps the deadline, so that it holds without the orchestrator too.
"""

from orchestrator_core.core.effects import ReplyPool, ReplyRefused, SendDrain
from orchestrator_core.core.events import PoolDrainRequested
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.records import PoolDrainRecord
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.state import State

BY_OPERATOR = "operator"
POOL_RESOURCE = "llamaorch.orchestrator.v1.Pool"


def unknown_pool(pool_id: str) -> Refusal:
    """The answer for a pool that is not registered."""
    message = f"no pool {pool_id!r} is registered"
    kind = {"resource_type": POOL_RESOURCE}
    return Refusal(Reason.NOT_FOUND, message, resource=pool_id, metadata=kind)


def drain_requested(state: State, event: PoolDrainRequested, now_ms: int) -> None:
    """Begins a drain, gives it another deadline, or ends it. Asking twice changes nothing more."""
    pool, drain = state.pools.get(event.pool_id), state.drains.get(event.pool_id)
    if pool is None and (event.draining or drain is None):
        state.emit(ReplyRefused(event.reply_to, unknown_pool(event.pool_id)))
        return
    if event.draining:
        since_ms = now_ms if drain is None else drain.since_ms
        drain = PoolDrainRecord(event.pool_id, since_ms, now_ms + event.timeout_ms)
        state.drains[event.pool_id] = drain
        state.emit(drain)
    elif drain is not None:
        end(state, event.pool_id)
    if pool is not None:
        pool.draining = event.draining
        state.refresh(pool, now_ms)
        state.fleet_changed()
        tell(state, pool, now_ms)
    state.emit(ReplyPool(event.reply_to, event.pool_id))
    # Who waited for this pool need not any more; who waited for others may take it again.
    schedule(state, now_ms)


def tell(state: State, pool: Pool, now_ms: int) -> None:
    """Tells a connected host whether its pool drains, and for how much longer it may."""
    if not pool.connected:
        return
    drain, snapshot = state.drains.get(pool.snapshot.pool_id), pool.snapshot
    left_ms = None if drain is None else max(0, drain.until_ms - now_ms)
    state.emit(SendDrain(snapshot.host_id, snapshot.pool_id, left_ms))


def tell_registered(state: State, pool: Pool, now_ms: int) -> None:
    """Tells a host that registered, where what it says of the pool is not what was decided."""
    snapshot = pool.snapshot
    pool.draining = snapshot.pool_id in state.drains
    drains = snapshot.state is PoolState.DRAINING and snapshot.state_reason == BY_OPERATOR
    if pool.draining or drains:
        tell(state, pool, now_ms)


def end(state: State, pool_id: str) -> None:
    """Forgets a drain: it was ended, or its host no longer has the pool."""
    drain = state.drains.pop(pool_id, None)
    if drain is not None:
        state.emit(PoolDrainRecord(pool_id, drain.since_ms, drain.until_ms, over=True))
