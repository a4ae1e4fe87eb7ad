"""One decision in full, and why there is none: all candidates, all exclusions. LO-207.

A stored decision is short, because each job keeps one. A replay comes back to the very moment of
the decision and asks placement for everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from orchestrator_core.core.decision import Decision, Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.declining import declined, same_replica_set
from orchestrator_core.core.job import Job
from orchestrator_core.core.placement import NoCapacity, decision, place
from orchestrator_core.core.scheduler import kept_for_older, placement_input
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.state import State


@dataclass(frozen=True, slots=True)
class Explained:
    """A complete decision, and the snapshots of its candidates, in their order."""

    decision: Decision
    snapshots: tuple[PoolSnapshot, ...]


def full_decision(
    state: State, job: Job, now_ms: int, reserved: Mapping[str, str] | None = None
) -> Explained | None:
    """Decides again, about all registered pools and without limits; None when none can take it.

    Does not change the state. O(pools log pools).
    """
    pools = [state.pools[pool_id] for pool_id in sorted(state.pools)]
    kept = dict(reserved) if reserved else None
    request = placement_input(state, job, pools, now_ms, kept, check_all=True)
    request = replace(request, complete=True)
    answer = place(request)
    if isinstance(answer, NoCapacity):
        return None
    made = decision(request, answer, job.declined_offers)
    told = {c.pool_id for c in made.candidates} | {e.pool_id for e in made.exclusions}
    others = tuple(
        _other_set(job, pool.snapshot) for pool in pools if pool.snapshot.pool_id not in told
    )
    exclusions = tuple(sorted((*made.exclusions, *others), key=lambda e: e.pool_id))
    return Explained(
        replace(made, exclusions=exclusions, exclusions_total=len(exclusions)),
        tuple(state.pools[candidate.pool_id].snapshot for candidate in made.candidates),
    )


def waiting_for(state: State, job: Job, now_ms: int) -> tuple[Exclusion, ...]:
    """Why each registered pool does not take a waiting job now; missing are those that could.

    Does not change the state. O(pools); more where a pool is open and older jobs want memory there.
    """
    pools = [state.pools[pool_id] for pool_id in sorted(state.pools)]
    request = placement_input(state, job, pools, now_ms, check_all=True)
    answer = place(request)
    if not isinstance(answer, NoCapacity):
        kept = kept_for_older(state, job, answer.pools, now_ms)
        if kept:
            request = replace(request, reserved=kept)
            answer = place(request)
    found = list(answer.exclusions)
    if not isinstance(answer, NoCapacity):
        found += declined(state, job, request, answer)
    bound = {pool.snapshot.pool_id for pool in same_replica_set(job, pools)}
    found += (_other_set(job, p.snapshot) for p in pools if p.snapshot.pool_id not in bound)
    return tuple(sorted(found, key=lambda exclusion: exclusion.pool_id))


def watch(state: State, tell: Callable[[Explained], None]) -> None:
    """Tells of every placement from here on, at the moment it is decided."""

    def placing(job: Job, reserved: Mapping[str, str], now_ms: int) -> None:
        explained = full_decision(state, job, now_ms, reserved)
        if explained is not None:
            tell(explained)

    state.on_placement = placing


def _other_set(job: Job, snapshot: PoolSnapshot) -> Exclusion:
    """A verified replay stays within the replica set that generated the delivered output."""
    required = " ".join(filter(None, job.replica_set or ()))
    offered = " ".join(filter(None, snapshot.replica_set))
    lacking = Shortfall(ExclusionReason.ENGINE, required, offered)
    return Exclusion(snapshot.pool_id, (lacking,))
