"""Whether a job takes an offered slot: what `outlook` advises, and where its cache is."""

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.job import Job
from orchestrator_core.core.outlook import (
    IDLE_MARGIN,
    TAKE,
    Advice,
    Weighed,
    faster_elsewhere,
    weigh,
)
from orchestrator_core.core.placement import Assigned, PlacementInput, predicted_ends_ms
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState


def weigh_offer(state: State, request: PlacementInput, placed: Assigned, ahead: int) -> Weighed:
    """Whether a job with `ahead` jobs before it should take what `place` found. O(tiers)."""
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
    return weigh(view, traffic, request.shape, placed.pool, placed.end_ms, ahead)


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


def declined(state: State, job: Job, request: PlacementInput, placed: Assigned) -> list[Exclusion]:
    """Why a waiting job takes none of the pools that could take it: it would end later there."""
    if job.state is not JobState.QUEUED:
        return []
    weighed = weigh_offer(state, request, placed, state.queue.position(job) - 1)
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
