"""The bound that no dispatcher can beat."""

import itertools

import pytest
from hypothesis import given, settings

from orchestrator_core.simulator.clairvoyant import least_mean_completion_ms
from orchestrator_core.simulator.engine import INFINITY, Engine, StreamEvent
from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.rivals import POLICIES, RivalRun
from orchestrator_core.simulator.traces import Request
from tests.unit.orchestrator_core.core.settings import STEADY
from tests.unit.orchestrator_core.simulator.cases import fleets, traces

Fleet, Trace = tuple[PoolSpec, ...], tuple[Request, ...]


def best_mean_ms(fleet: Fleet, requests: Trace) -> float:
    """The least mean over all orders and all assignments; a pool serves its own jobs in order."""
    jobs = range(len(requests))
    found = INFINITY
    for order in itertools.permutations(jobs):
        for pools in itertools.product(range(len(fleet)), repeat=len(requests)):
            found = min(found, _mean_ms(fleet, requests, order, pools))
    return found


def _mean_ms(
    fleet: Fleet, requests: Trace, order: tuple[int, ...], pools: tuple[int, ...]
) -> float:
    engine, total_ms, now_ms = Engine(fleet), 0.0, 0.0
    lists = [[job for job in order if pools[job] == index] for index in range(len(fleet))]
    while True:
        for index, waiting in enumerate(lists):
            while (
                waiting and engine.pools[index].free and requests[waiting[0]].arrival_ms <= now_ms
            ):
                job = requests[waiting[0]]
                tokens = job.prompt_tokens, job.output_tokens
                engine.start(index, waiting.pop(0), tokens, now_ms)
        heads = [requests[waiting[0]].arrival_ms for waiting in lists if waiting]
        arrival_ms = min((at_ms for at_ms in heads if at_ms > now_ms), default=INFINITY)
        at_ms = min(arrival_ms, engine.next_ms())
        if at_ms == INFINITY:
            return total_ms / len(requests)
        now_ms = at_ms
        if engine.next_ms() <= now_ms:
            happened = engine.pop()
            if happened is not None and happened[0] is StreamEvent.END:
                total_ms += now_ms - requests[happened[2]].arrival_ms


@given(fleet=fleets(2), requests=traces(4))
@settings(STEADY, max_examples=60)
def test_no_order_and_no_assignment_beats_the_bound(fleet: Fleet, requests: Trace) -> None:
    """All of them are tried on tiny cases."""
    best_ms = best_mean_ms(fleet, requests)

    assert least_mean_completion_ms(fleet, requests) <= best_ms * (1 + 1e-9) + 1e-6


@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=30)
def test_no_rival_beats_the_bound(fleet: Fleet, requests: Trace) -> None:
    """On larger cases, whatever the policy."""
    least_ms = least_mean_completion_ms(fleet, requests)

    for binding, names in POLICIES.items():
        for name in names:
            run = RivalRun(fleet, requests, None).run(binding, name)
            spans = [line.end_ms - line.arrival_ms for line in run.jobs if line.end_ms is not None]
            assert sum(spans) / len(spans) >= least_ms * (1 - 1e-9) - 1e-6


def test_the_bound_is_exact_where_one_slot_serves_jobs_in_order_of_length() -> None:
    """1 s, 2 s and 3 s on one slot: 1, 3 and 6 s after the arrival of all."""
    fleet = (PoolSpec("p", slots=1, prefill=1000, decode=10),)
    requests = tuple(Request(0.0, 0, tokens) for tokens in (20, 10, 30))

    assert least_mean_completion_ms(fleet, requests) == pytest.approx(10_000 / 3)


def test_the_bound_is_exact_for_jobs_that_never_meet() -> None:
    """Each is alone on the pool that is fastest for it."""
    fleet = (
        PoolSpec("reads fast", slots=8, prefill=10_000, decode=10),
        PoolSpec("writes fast", slots=8, prefill=100, decode=100),
    )
    requests = (Request(0.0, 1000, 1), Request(1e6, 0, 100))

    assert least_mean_completion_ms(fleet, requests) == pytest.approx((200.0 + 1000.0) / 2)


def test_the_bound_allows_for_pools_that_are_good_at_different_jobs() -> None:
    """Two long reads and two long writes, each on its pool: 1 s and 2 s, twice."""
    fleet = (
        PoolSpec("reads", slots=1, prefill=10_000, decode=1),
        PoolSpec("writes", slots=1, prefill=100, decode=100),
    )
    requests = (*[Request(0.0, 10_000, 1)] * 2, *[Request(0.0, 0, 100)] * 2)
    served_ms = (2000.0 + 4000.0 + 1000.0 + 2000.0) / 4

    assert best_mean_ms(fleet, requests) == pytest.approx(served_ms)
    assert least_mean_completion_ms(fleet, requests) <= served_ms
