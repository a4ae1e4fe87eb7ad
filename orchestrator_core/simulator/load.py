"""Offered load: how busy a trace keeps a fleet.

The capacity of a fleet for a trace is the sum over its pools of slots / service, where service is
what the trace's mean job (mean prompt, mean output) takes while every slot of the pool is busy.
Load is the trace's arrival rate, (requests - 1) / (last arrival - first), over that capacity.
"""

from collections.abc import Sequence

from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.traces import Request


def capacity_per_ms(fleet: Sequence[PoolSpec], requests: Sequence[Request]) -> float:
    """Mean jobs per millisecond that a fleet serves with every slot busy."""
    prompt = sum(r.prompt_tokens for r in requests) / len(requests)
    output = sum(r.output_tokens for r in requests) / len(requests)
    return sum(pool.slots / pool.service_ms(prompt, output, pool.slots) for pool in fleet)


def mean_service_ms(fleet: Sequence[PoolSpec], requests: Sequence[Request]) -> float:
    """What a mean job takes with every slot busy, averaged over the fleet's capacity."""
    return sum(pool.slots for pool in fleet) / capacity_per_ms(fleet, requests)


def offered_load(fleet: Sequence[PoolSpec], requests: Sequence[Request]) -> float:
    """Load that a trace puts on a fleet. Raises ValueError when it has no arrival rate."""
    span_ms = requests[-1].arrival_ms - requests[0].arrival_ms
    if span_ms <= 0:
        raise ValueError("the trace has no arrival rate: all requests arrive at one instant")
    return (len(requests) - 1) / span_ms / capacity_per_ms(fleet, requests)


def scaled(
    requests: Sequence[Request], fleet: Sequence[PoolSpec], load: float
) -> tuple[Request, ...]:
    """Stretches or compresses the arrivals so that the fleet is offered `load`.

    Raises:
        ValueError: when the load is not positive or the trace has no arrival rate.
    """
    if not 0 < load < float("inf"):
        raise ValueError(f"--load must be positive, is {load}")
    factor = offered_load(fleet, requests) / load
    return tuple(Request(r.arrival_ms * factor, r.prompt_tokens, r.output_tokens) for r in requests)
