"""What a waiting job is told: when it should start and end, and when to come back. ORCH-2007.

A job that is n-th in line starts when n slots have been freed: n divided by the rate at which the
pools in use end jobs (`outlook`), times a factor that follows how such forecasts turned out.
LO-206.
"""

import heapq
from dataclasses import dataclass

from orchestrator_core.core.job import Job, disturbed
from orchestrator_core.core.outlook import Outlook, ending_per_ms, expected_service_ms
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.spec import INTERACTIVE, JobSpec, Shape
from orchestrator_core.core.state import State

# Near the head of a short line, what runs now says more than rates do.
NEAR_POSITIONS = 4
NEAR_SLOTS = 64
# About 300,000 years; keeps what is told within 64 bits, whatever pools and clients say.
START_MS_MAX = 1e16


@plain_init
@dataclass(frozen=True, slots=True)
class Forecast:
    """Milliseconds from now. None while no feasible pool is connected.

    `plain_start_ms` is the start before it was corrected by how such forecasts turned out; None
    for a job that was placed at once.
    """

    start_ms: int | None
    end_ms: int | None
    plain_start_ms: int | None = None


UNKNOWN = Forecast(None, None)


def forecast(
    state: State, spec: JobSpec, position: int, now_ms: int, shape: Shape | None = None
) -> Forecast:
    """Predicts a job that is `position`-th among those who compete for its pools. O(tiers).

    `shape` is its expected size, where the caller knows it already.
    """
    view = state.outlook(spec.needs)
    if not view.tiers:
        return UNKNOWN
    rate = _ending_per_ms(state, view, spec, now_ms)
    plain_ms = int(position / rate)
    if position <= NEAR_POSITIONS:
        near_ms = _near_start_ms(state, spec, position, now_ms)
        plain_ms = plain_ms if near_ms is None else near_ms
    start_ms = int(min(plain_ms * state.predictor.residuals.start.median(), START_MS_MAX))
    service_ms = expected_service_ms(view, shape or state.predictor.shape(spec))
    return Forecast(start_ms, start_ms + int(service_ms), plain_ms)


def forecast_placed(job: Job) -> Forecast:
    """The forecast of a job that was placed in the same step. O(1)."""
    assert job.attempt is not None, "only a placed job has an attempt"
    return Forecast(0, job.attempt.predicted_end_ms)


def on_time_probability(state: State, spec: JobSpec, shape: Forecast, now_ms: int) -> float | None:
    """Probability of ending before the deadline; None without a deadline or a forecast."""
    if spec.deadline_ms is None or shape.end_ms is None or shape.start_ms is None:
        return None
    return state.predictor.residuals.on_time_probability(
        shape.plain_start_ms or 0,
        shape.end_ms - shape.start_ms,
        spec.deadline_ms - now_ms,
        waited=shape.plain_start_ms is not None,
    )


def finish_probability(state: State, job: Job, now_ms: int) -> float | None:
    """Probability that a job with an attempt ends before its deadline; None without one."""
    attempt = job.attempt
    if job.spec.deadline_ms is None or attempt is None:
        return None
    return state.predictor.residuals.finish_probability(
        attempt.predicted_end_ms,
        now_ms - attempt.sent_ms,
        job.spec.deadline_ms - now_ms,
        waited=job.plain_start_ms is not None,
    )


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
        gap_ms = 0 if spec is None else _predicted_gap_ms(state, spec, now_ms)
    if places is None:
        wait_ms = state.drain.next_place_ms(gap_ms, now_ms) - now_ms
    else:
        wait_ms = gap_ms * places
    return min(max(wait_ms, state.config.retry_after_min_ms), state.config.retry_after_max_ms)


def _predicted_gap_ms(state: State, spec: JobSpec, now_ms: int) -> int:
    """Start of a job at the end of the queue, shared out among those that leave before it."""
    waiting = len(state.queue) + 1
    return -(-(forecast(state, spec, waiting, now_ms).start_ms or 0) // waiting)


def learn_from_end(state: State, job: Job, now_ms: int, *, finished: bool) -> None:
    """Compares what a job was told with what became of it. LO-206.

    A job that was given up had taken at least so long: its residual is censored. Only first
    attempts count: a retry was not part of what was told, and neither was a restart.
    """
    start_ms, end_ms = job.predicted_start_ms, job.predicted_end_ms
    if start_ms is None or end_ms is None or job.attempts_made > 1 or job.recovered:
        return
    if disturbed(job.paused_ms, now_ms - job.accepted_ms):
        return
    plain_ms = job.plain_start_ms
    residuals = state.predictor.residuals
    dispatched_ms = job.first_dispatch_ms
    if plain_ms is not None:
        until_ms = now_ms if dispatched_ms is None else dispatched_ms
        started = dispatched_ms is not None
        ratio = (until_ms - job.accepted_ms) / max(1, plain_ms)
        residuals.start.add(ratio, censored=not started)
    if dispatched_ms is None or job.attempt is None:
        return
    told_ms = max(1, end_ms - start_ms)
    window = residuals.service_at_once if plain_ms is None else residuals.service_waited
    window.add((now_ms - dispatched_ms) / told_ms, censored=not finished)


def _near_start_ms(state: State, spec: JobSpec, position: int, now_ms: int) -> int | None:
    """When the `position`-th slot will be freed, from what runs now. O(NEAR_POSITIONS log slots).

    None on fleets so large that the rate tells as much. Slots freed earlier are taken by the jobs
    ahead and freed again after a mean service.
    """
    services = state.predictor.residuals.service_at_once
    freed: list[tuple[float, str, float]] = []
    for pool_id, pool in state.feasible(spec.needs).pools.items():
        if pool.open or not pool.connected:
            continue
        if len(freed) + len(pool.own) > NEAR_SLOTS:
            return None
        for attempt in pool.own.values():
            took_ms, told_ms = now_ms - attempt.sent_ms, max(1, attempt.predicted_end_ms)
            left_ms = told_ms * services.median_above(took_ms / told_ms) - took_ms
            freed.append((max(0.0, left_ms), pool_id, float(told_ms)))
    if not freed:
        return None
    heapq.heapify(freed)
    for _ in range(position - 1):
        at_ms, pool_id, service_ms = freed[0]
        heapq.heapreplace(freed, (at_ms + service_ms, pool_id, service_ms))
    return int(freed[0][0])


def _ending_per_ms(state: State, view: Outlook, spec: JobSpec, now_ms: int) -> float:
    """The rate at which a lane's line moves.

    BATCH moves with what INTERACTIVE leaves over, or with its turns.
    """
    mean = state.queue.mean_shape(spec.needs.model_id) or state.predictor.shape(spec)
    rate = ending_per_ms(view, state.traffic(spec.needs.model_id, now_ms), mean)
    if spec.priority is INTERACTIVE:
        return rate
    stats = state.predictor.known_model(spec.needs.model_id)
    left = rate - stats.arrivals_per_ms(INTERACTIVE, now_ms)
    interactive, batch = state.config.turns
    return max(left, rate * batch / (interactive + batch))
