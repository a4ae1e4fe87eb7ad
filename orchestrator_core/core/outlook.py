"""What a lane can expect of its pools: speed in tiers, and whether waiting for a faster one pays.

A job may decline a slot. Two questions decide, both asked with numbers (docs/placement.md):

1. *Should the slot be used at all?* Let faster pools end r jobs per millisecond and let a jobs per
   millisecond arrive. While they are busy, one more job in their queue of n delays everybody until
   that queue is empty, (n + 1) / (r - a) milliseconds in all, arrivals included. If even that plus
   its service there is sooner than the end here, by `IDLE_MARGIN`, the slot is better left idle.
   With a >= r the faster pools can never serve the demand alone and every slot is used. This is
   the fluid limit of the threshold policies for a fast and a slow server. Source: Lin and Kumar,
   "Optimal Control of a Queueing System with Two Heterogeneous Servers", IEEE TAC 29 (1984).
2. *By whom?* A slot's time has a price: every job that waits is delayed by it. A job's cost on a
   pool is its end there plus that price times the time that it takes there relative to the mean
   job. The offer goes down the queue to the first job that costs no more here than elsewhere, and
   if none does, to the one that loses least.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import ModelStats
from orchestrator_core.core.snapshot import READY
from orchestrator_core.core.spec import Shape

# A pool counts as faster for a job when it would end it by this factor sooner, waiting left out.
FASTER_BY = 1.25
# A slot is left idle only where waiting is predicted to be better by this share.
IDLE_MARGIN = 0.2
# An offer is passed on only where it costs the job more by this share than elsewhere.
PASS_MARGIN = 0.05
# Pools whose mean service times lie within this factor form one tier.
TIER_WIDTH = 1.15
# At the edge of saturation a queue takes this many times as long to drain as without arrivals.
DRAIN_MAX = 20.0
# An outlook is made anew once this many jobs, or half of its pools, have taught something.
RENEW_AFTER = 16


@dataclass(frozen=True, slots=True)
class Tier:
    """Pools of about one speed with `slots` slots together, all busy.

    `jobs_per_ms` is what they end together, `mean_ms` the service of the model's mean job. A job
    takes `first_ms` + `prompt_token_ms` per prompt token + `token_ms` per output token there.
    """

    slots: int
    jobs_per_ms: float
    mean_ms: float
    first_ms: float
    prompt_token_ms: float
    token_ms: float

    def service_ms(self, shape: Shape) -> float:
        """Predicted milliseconds from start to end of a job."""
        return (
            self.first_ms
            + self.prompt_token_ms * shape.prompt_tokens
            + self.token_ms * shape.output_tokens
        )


@dataclass(frozen=True, slots=True)
class Outlook:
    """Tiers of a lane's `pools` usable pools, the fastest first.

    `learned` and `fleet` are the counters of the state when it was made.
    """

    tiers: tuple[Tier, ...]
    jobs_per_ms: float
    learned: int
    fleet: int
    pools: int

    def due(self, learned: int, fleet: int) -> bool:
        """True when it must be made anew."""
        lessons = learned - self.learned
        return fleet != self.fleet or (lessons >= RENEW_AFTER and lessons >= self.pools // 2)


@plain_init
@dataclass(frozen=True, slots=True)
class Traffic:
    """Who competes for a lane's pools: jobs that wait, and arrivals per millisecond."""

    waiting: int
    arrivals_per_ms: float


class Advice(enum.Enum):
    """What a job does with an offered slot."""

    TAKE = "take"
    PASS_ON = "pass_on"  # noqa: S105 - no password
    LEAVE_IDLE = "leave_idle"


@plain_init
@dataclass(frozen=True, slots=True)
class Weighed:
    """An offer weighed: what to do, the predicted end elsewhere, and the loss by taking it."""

    advice: Advice
    elsewhere_ms: float = 0.0
    loss: float = 0.0


TAKE = Weighed(Advice.TAKE)


def outlook(pools: Sequence[Pool], stats: ModelStats, learned: int, fleet: int) -> Outlook:
    """Sorts pools that could serve into tiers. O(pools log pools)."""
    mean = Shape(stats.prompt_tokens, stats.output_tokens)
    usable = [p for p in pools if _usable(p)]
    services = [(max(1.0, _service_ms(pool, mean)), pool) for pool in usable]
    services.sort(key=lambda each: (each[0], each[1].snapshot.pool_id))
    tiers: list[Tier] = []
    group: list[tuple[float, Pool]] = []
    for service_ms, pool in services:
        if group and service_ms > group[0][0] * TIER_WIDTH:
            tiers.append(_tier(group))
            group = []
        group.append((service_ms, pool))
    if group:
        tiers.append(_tier(group))
    total = added(tier.jobs_per_ms for tier in tiers)
    return Outlook(tuple(tiers), total, learned, fleet, len(usable))


def faster_elsewhere(view: Outlook, shape: Shape, here_ms: int) -> bool:
    """True when a tier would end the job clearly sooner than `here_ms`, waiting left out. O(1)."""
    return bool(view.tiers) and view.tiers[0].service_ms(shape) < here_ms / FASTER_BY


def weigh(
    view: Outlook, traffic: Traffic, shape: Shape, pool: Pool, here_ms: int, ahead: int
) -> Weighed:
    """Advises a job with `ahead` jobs before it that would end in `here_ms` on `pool`. O(tiers)."""
    if not faster_elsewhere(view, shape, here_ms):
        return TAKE
    limit_ms = here_ms / FASTER_BY
    price_ms = _price_ms(view, traffic)
    mean_ms = max(1.0, _mean_service_ms(view, pool))
    here_cost = here_ms + price_ms * _service_ms(pool, shape) / mean_ms
    rate = served_ms = relative = 0.0
    best_cost = best_ms = float("inf")
    use = True
    for tier in view.tiers:
        service_ms = tier.service_ms(shape)
        if service_ms >= limit_ms:
            break
        rate += tier.jobs_per_ms
        served_ms += tier.jobs_per_ms * service_ms
        relative += tier.jobs_per_ms * service_ms / tier.mean_ms
        end_ms = (ahead + 1) / rate + served_ms / rate
        cost = end_ms + price_ms * relative / rate
        if cost < best_cost:
            best_cost, best_ms = cost, end_ms
        spare = rate - traffic.arrivals_per_ms
        if spare > 0.0:
            delay_ms = traffic.waiting / spare * (relative / rate) + served_ms / rate
            use = use and delay_ms * (1.0 + IDLE_MARGIN) >= here_ms
    if use and here_cost <= best_cost * (1.0 + PASS_MARGIN):
        return TAKE
    advice = Advice.PASS_ON if use else Advice.LEAVE_IDLE
    return Weighed(advice, best_ms, here_cost - best_cost)


def faster(pool: Pool, shape: Shape, here_ms: int) -> bool:
    """True when a job would end sooner on a pool than in `here_ms`, waiting left out. O(1)."""
    return _usable(pool) and _service_ms(pool, shape) < here_ms / FASTER_BY


def added(values: Iterable[float]) -> float:
    """Sum from left to right. The built-in one rounds otherwise from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total


def ending_per_ms(view: Outlook, traffic: Traffic, mean: Shape) -> float:
    """Jobs of size `mean` per millisecond that the tiers in use end. O(tiers).

    A tier is in use when the queue is long enough for it, by the first question of `weigh`.
    """
    rate = 0.0
    for tier in view.tiers:
        spare = rate - traffic.arrivals_per_ms
        service_ms = max(1.0, tier.service_ms(mean))
        if rate and spare > 0.0 and traffic.waiting / spare * (1.0 + IDLE_MARGIN) < service_ms:
            break
        rate += tier.slots / service_ms
    return rate


def expected_service_ms(view: Outlook, shape: Shape) -> float:
    """Mean service of a job over the tiers, each by its share of what is ended. O(tiers)."""
    if not view.tiers:
        return 0.0
    ended = 0.0
    for tier in view.tiers:
        ended += tier.jobs_per_ms * tier.service_ms(shape)
    return ended / view.jobs_per_ms


def _usable(pool: Pool) -> bool:
    snapshot = pool.snapshot
    ready = snapshot.state is READY and not pool.draining
    return pool.connected and ready and snapshot.slots_total > 0


def _service_ms(pool: Pool, shape: Shape) -> float:
    return (
        pool.first_base_ms
        + pool.prompt_token_ms * shape.prompt_tokens
        + pool.full_token_ms * shape.output_tokens
    )


def _price_ms(view: Outlook, traffic: Traffic) -> float:
    """How long the present queue takes to drain, arrivals included: what a slot's time costs."""
    spare = max(view.jobs_per_ms / DRAIN_MAX, view.jobs_per_ms - traffic.arrivals_per_ms)
    return max(0, traffic.waiting - 1) / spare


def _mean_service_ms(view: Outlook, pool: Pool) -> float:
    """Service of the mean job on a pool: that of the tier whose speed is closest to its own."""
    return min(view.tiers, key=lambda tier: abs(tier.token_ms - pool.full_token_ms)).mean_ms


def _tier(group: Sequence[tuple[float, Pool]]) -> Tier:
    slots, total, first, prompt, token = 0, 0.0, 0.0, 0.0, 0.0
    for service_ms, pool in group:
        rate = pool.snapshot.slots_total / service_ms
        slots += pool.snapshot.slots_total
        total += rate
        first += rate * pool.first_base_ms
        prompt += rate * pool.prompt_token_ms
        token += rate * pool.full_token_ms
    # Weighted by the jobs that each pool ends, so the mean service is slots over jobs.
    return Tier(slots, total, slots / total, first / total, prompt / total, token / total)
