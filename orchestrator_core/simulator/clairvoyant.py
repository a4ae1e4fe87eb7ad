"""A lower bound on the mean completion time that knows every length and every arrival.

No dispatcher can be better on average than the larger of two numbers:

1. Every job alone on the pool that is fastest for it, with no wait.
2. The best preemptive schedule of one machine that stands for the whole fleet.

Why the second is a bound. Let job j on pool p have prefill a (ms) and decode d (ms, alone), and let
f(k) = 1 + slope * (k - 1). While k slots are busy let each stream be charged 1/k of the passing
time: a pool then charges exactly as much time as it is busy. The job spends `a` in prefill at some
k and stays `d * f(k)` in decode at some k, so it is charged at least

    c_pj = a / slots + d * min over k of f(k) / k,

however it is scheduled. Write m_pj = 1 / c_pj for the most of job j that a millisecond of pool p
can do, R_j = sum over p of m_pj, and kappa = sum over p of max over j of m_pj / R_j (at least 1,
as the m_pj / R_j of one job add up to 1). Now take any schedule, in which pool p gives job j the
share x_pj(t) of its time, at most 1 together, and let one machine give job j the share
s_j(t) = sum over p of x_pj(t) * m_pj / (kappa * R_j). Then

    sum over j of s_j <= 1/kappa * sum over p of (max over j of m_pj / R_j) = 1,

so one machine can do that, and by the time at which j is complete it has given j
1 / (kappa * R_j): its processing time there. Hence the machine completes no job later than the
fleet does, and shortest remaining processing time first minimises its sum of completion times
(Schrage 1968), shares of the machine included.
"""

import heapq
from collections.abc import Sequence

from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.traces import Request


def least_mean_completion_ms(fleet: Sequence[PoolSpec], requests: Sequence[Request]) -> float:
    """Returns the bound, in milliseconds. `requests` are in order of arrival. O(n (log n + kinds)).

    Pools with equal numbers are counted together, so large fleets of few kinds are cheap.
    """
    kinds = _kinds(fleet)
    alone_ms = sum(
        min(spec.service_ms(r.prompt_tokens, r.output_tokens, 1) for spec, _ in kinds)
        for r in requests
    )
    arrivals = [r.arrival_ms for r in requests]
    return max(alone_ms, _shortest_first_ms(arrivals, _pooled_ms(kinds, requests))) / len(requests)


def _kinds(fleet: Sequence[PoolSpec]) -> list[tuple[PoolSpec, int]]:
    counts: dict[tuple[float, ...], tuple[PoolSpec, int]] = {}
    for spec in fleet:
        key = (spec.slots, spec.prefill, spec.decode, spec.slope)
        counts[key] = (spec, counts.get(key, (spec, 0))[1] + 1)
    return list(counts.values())


def least_charge_ms(spec: PoolSpec, request: Request) -> float:
    """The least time of a pool that a job can cost, however it is scheduled."""
    crowding = min((1.0 + spec.slope * (k - 1)) / k for k in (1, spec.slots))
    prefill_ms = 1000.0 * request.prompt_tokens / spec.prefill
    return prefill_ms / spec.slots + 1000.0 * request.output_tokens / spec.decode * crowding


def _pooled_ms(kinds: Sequence[tuple[PoolSpec, int]], requests: Sequence[Request]) -> list[float]:
    """Processing times on the machine that stands for the fleet."""
    most = [0.0] * len(kinds)
    together: list[float] = []
    for request in requests:
        rates = [1.0 / least_charge_ms(spec, request) for spec, _ in kinds]
        total = sum(rate * count for rate, (_, count) in zip(rates, kinds, strict=True))
        together.append(total)
        most = [max(old, rate / total) for old, rate in zip(most, rates, strict=True)]
    kappa = sum(share * count for share, (_, count) in zip(most, kinds, strict=True))
    return [1.0 / (kappa * total) for total in together]


def _shortest_first_ms(arrivals_ms: Sequence[float], work_ms: Sequence[float]) -> float:
    """Sum of completion times, each from arrival, of preemptive shortest remaining time first."""
    total_ms = now_ms = 0.0
    left: list[tuple[float, float]] = []
    for index, (arrival_ms, work) in enumerate(zip(arrivals_ms, work_ms, strict=True)):
        now_ms = max(now_ms, arrival_ms)
        heapq.heappush(left, (work, arrival_ms))
        until_ms = arrivals_ms[index + 1] if index + 1 < len(arrivals_ms) else float("inf")
        while left and now_ms < until_ms:
            remaining, since_ms = heapq.heappop(left)
            if now_ms + remaining > until_ms:
                heapq.heappush(left, (remaining - (until_ms - now_ms), since_ms))
                break
            now_ms += remaining
            total_ms += now_ms - since_ms
    return total_ms
