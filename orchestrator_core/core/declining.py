"""Whether a job takes an offered slot: what `outlook` advises, and where its cache is."""

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.job import Job
from orchestrator_core.core.outlook import (
    IDLE_MARGIN,
    TAKE,
    Advice,
    Weighed,
    faster,
    faster_elsewhere,
    weigh,
)
from orchestrator_core.core.placement import (
    Assigned,
    PlacementInput,
    could_ever_take,
    predicted_ends_ms,
)
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState


def same_replica_set(job: Job, pools: list[Pool]) -> list[Pool]:
    """A verified replay stays within the replica set that generated the delivered output."""
    bound_to = job.bound_to
    if bound_to is None:
        return pools
    return [pool for pool in pools if pool.snapshot.replica_set == bound_to]


def may_decline(state: State, job: Job, now_ms: int) -> bool:
    """False where declining is off, or the job has let slots pass for long enough."""
    config, since_ms = state.config, job.declined_since_ms
    if not (config.decline_offers and config.performance_scoring):
        return False
    return since_ms is None or now_ms - since_ms < config.decline_max_ms


def weigh_offer(
    state: State, job: Job, request: PlacementInput, placed: Assigned, ahead: int
) -> Weighed:
    """Whether a job with `ahead` jobs before it should take what `place` found. O(tiers).

    O(pools) for a job that would decline and cannot use all of them.
    """
    needs = request.spec.needs
    view = state.outlook(needs)
    warm_ms = _warm_end_ms(state, request, placed)
    if warm_ms is None and not faster_elsewhere(view, request.shape, placed.end_ms):
        return TAKE
    traffic = state.traffic(needs.model_id, request.now_ms)
    if warm_ms is not None and warm_ms * (1.0 + IDLE_MARGIN) < placed.end_ms:
        # Waiting for its cache helps this job alone, so a slot that others can use is passed on.
        advice = Advice.PASS_ON if traffic.waiting > 1 else Advice.LEAVE_IDLE
        return Weighed(advice, float(warm_ms), float(placed.end_ms - warm_ms))
    weighed = weigh(view, traffic, request.shape, placed.pool, placed.end_ms, ahead)
    if weighed.advice is not Advice.TAKE and not _waits_for_something(state, job, request, placed):
        return TAKE
    return weighed


def declined(state: State, job: Job, request: PlacementInput, placed: Assigned) -> list[Exclusion]:
    """Why a waiting job takes none of the pools that could take it: it would end later there."""
    if job.state is not JobState.QUEUED or not may_decline(state, job, request.now_ms):
        return []
    weighed = weigh_offer(state, job, request, placed, state.queue.position(job) - 1)
    if weighed.advice is Advice.TAKE:
        return []
    required = f"an end within {int(weighed.elsewhere_ms)} ms, as predicted elsewhere"
    return [
        Exclusion(
            pool.snapshot.pool_id,
            (Shortfall(ExclusionReason.DECLINED, required, f"an end in {end_ms} ms"),),
        )
        for pool, end_ms in zip(placed.pools, placed.ends_ms, strict=True)
    ]


def _waits_for_something(state: State, job: Job, request: PlacementInput, placed: Assigned) -> bool:
    """True when a faster pool that cannot take the job now may take this very job later.

    Tiers are made anew only now and then, and tell of pools that are open too: what those can do
    now has just been weighed, so nobody waits for them.
    """
    pools = list(state.feasible(request.spec.needs).pools.values())
    sized = request.spec.est_kv_bytes is not None or request.spec.needs.required_ctx is not None
    bound = sized or bool(request.tried_replicas) or job.delivered
    if bound:
        pools = same_replica_set(job, pools)
    for pool in pools:
        if pool.open or not faster(pool, request.shape, placed.end_ms):
            continue
        if not bound or could_ever_take(request, pool):
            return True
    return False


def _warm_end_ms(state: State, request: PlacementInput, placed: Assigned) -> int | None:
    """Predicted end on the busy pool that has the session's cache; None where there is none.

    Its next slot is expected when the first of its attempts is predicted to end. ORCH-3009.
    """
    pool = state.pools.get(request.warm_pool_id)
    if pool is None or pool is placed.pool or pool.open or not pool.connected or not pool.own:
        return None
    if pool.snapshot.pool_id not in state.feasible(request.spec.needs).pools:
        return None
    left_ms = [a.sent_ms + a.predicted_end_ms - request.now_ms for a in pool.own.values()]
    return max(0, min(left_ms)) + predicted_ends_ms(request, [pool])[0]
