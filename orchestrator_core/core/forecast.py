"""What a waiting job is told: when it should start and end, and when to come back. ORCH-2007.

The forecast of a start is deliberately simple: jobs ahead times the learned service time of the
model, spread over the slots of the feasible pools (Little's law for a saturated queue).
"""

from dataclasses import dataclass

from orchestrator_core.core.job import Job, JobSpec
from orchestrator_core.core.state import State


@dataclass(frozen=True, slots=True)
class Forecast:
    """Milliseconds from now. None while no feasible pool is connected."""

    start_ms: int | None
    end_ms: int | None


UNKNOWN = Forecast(None, None)


def forecast(state: State, spec: JobSpec, position: int) -> Forecast:
    """Predicts a job that would wait at `position`. O(available pools)."""
    feasible = state.feasible(spec.needs)
    best = next((pool_id for pool_id in state.available if pool_id in feasible.pool_ids), None)
    if best is None:
        connected = (p for p in feasible.pool_ids if state.pools[p].connected)
        best = next(connected, None)
        if best is None:
            return UNKNOWN
        free_now = False
    else:
        free_now = position == 1
    pool = state.pools[best]
    estimate = state.predictor.estimate(spec, pool.snapshot, pool.occupied() + 1)
    own_ms = estimate.first_token_ms + estimate.decode_ms
    if free_now:
        return Forecast(0, own_ms)
    service_ms = state.service_ms.get(spec.needs.model_id, float(own_ms))
    start_ms = int(position * service_ms / max(1, feasible.slots_total))
    return Forecast(start_ms, start_ms + own_ms)


def on_time_probability(state: State, spec: JobSpec, shape: Forecast, now_ms: int) -> float | None:
    """Probability of ending before the deadline; None without a deadline or a forecast."""
    if spec.deadline_ms is None or shape.end_ms is None:
        return None
    return state.predictor.on_time_probability(shape.end_ms, spec.deadline_ms - now_ms)


def retry_after_ms(
    state: State, now_ms: int, spec: JobSpec | None = None, places: int | None = None
) -> int:
    """When the next place in the queue should be free that is not promised to somebody else.

    The time between departures is measured; until two were seen, the predicted start of `spec`
    stands in. `places` asks for so many departures from now on instead, promised or not. Within the
    configured bounds. ORCH-3017.
    """
    gap_ms = state.drain.gap_ms(now_ms)
    if gap_ms is None:
        gap_ms = 0 if spec is None else _predicted_gap_ms(state, spec)
    if places is None:
        wait_ms = state.drain.next_place_ms(gap_ms, now_ms) - now_ms
    else:
        wait_ms = gap_ms * places
    return min(max(wait_ms, state.config.retry_after_min_ms), state.config.retry_after_max_ms)


def _predicted_gap_ms(state: State, spec: JobSpec) -> int:
    """Start of a job at the end of the queue, shared out among those that leave before it."""
    waiting = len(state.queue) + 1
    return -(-(forecast(state, spec, waiting).start_ms or 0) // waiting)


def learn_service(state: State, job: Job) -> None:
    """Learns how long a job of this model keeps a slot."""
    if job.ended_ms is None or job.first_dispatch_ms is None:
        return
    took_ms = float(job.ended_ms - job.first_dispatch_ms)
    model_id = job.spec.needs.model_id
    old = state.service_ms.get(model_id)
    if old is None and len(state.service_ms) >= state.config.lanes_max:
        del state.service_ms[next(iter(state.service_ms))]
    state.service_ms[model_id] = took_ms if old is None else old + 0.2 * (took_ms - old)
