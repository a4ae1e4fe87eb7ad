"""The dispatchers we compare with: sound, fair in order, and repeatable."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.results import JobLine, Run
from orchestrator_core.simulator.rivals import POLICIES, Binding, RivalRun
from orchestrator_core.simulator.traces import Request
from tests.unit.orchestrator_core.core.settings import STEADY
from tests.unit.orchestrator_core.simulator.cases import fleets, traces

RIVALS = [(binding, name) for binding, names in POLICIES.items() for name in names]
Fleet, Trace = tuple[PoolSpec, ...], tuple[Request, ...]


def most_at_once(lines: list[JobLine]) -> int:
    """The most jobs that ever held a slot together; an end frees it for a start at one instant."""
    moments = sorted(
        [(line.start_ms, 1) for line in lines if line.start_ms is not None]
        + [(line.end_ms, -1) for line in lines if line.end_ms is not None]
    )
    busy = most = 0
    for _, change in moments:
        busy += change
        most = max(most, busy)
    return most


@pytest.mark.parametrize(("binding", "policy"), RIVALS)
@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=30)
def test_every_job_is_served_once_and_no_pool_beyond_its_slots(
    binding: Binding, policy: str, fleet: Fleet, requests: Trace
) -> None:
    """Nothing is lost, nothing starts before it arrives."""
    run = RivalRun(fleet, requests, None, seed=1).run(binding, policy)

    assert len(run.jobs) == len(requests)
    for line in run.jobs:
        assert line.start_ms is not None
        assert line.end_ms is not None
        assert line.arrival_ms <= line.start_ms < line.end_ms
    for index, spec in enumerate(fleet):
        assert most_at_once([line for line in run.jobs if line.pool == index]) <= spec.slots


@pytest.mark.parametrize("policy", POLICIES[Binding.LATE])
@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=30)
def test_late_binding_starts_jobs_in_order_of_arrival_and_keeps_no_slot_idle(
    policy: str, fleet: Fleet, requests: Trace
) -> None:
    """A job waits only while all slots of the fleet are busy."""
    run = RivalRun(fleet, requests, None, seed=1).run(Binding.LATE, policy)

    starts = [line.start_ms for line in run.jobs]
    assert starts == sorted(starts, key=lambda at_ms: at_ms or 0.0)
    slots = sum(spec.slots for spec in fleet)
    for line in run.jobs:
        if line.start_ms and line.start_ms > line.arrival_ms:
            assert _busy_just_before(run, line.start_ms) == slots


def _busy_just_before(run: Run, at_ms: float) -> int:
    return sum(
        1
        for line in run.jobs
        if line.start_ms is not None
        and line.end_ms is not None
        and line.start_ms < at_ms <= line.end_ms
    )


@pytest.mark.parametrize("policy", POLICIES[Binding.ARRIVAL])
@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=30)
def test_binding_on_arrival_keeps_the_order_of_each_pool(
    policy: str, fleet: Fleet, requests: Trace
) -> None:
    """A job waits for its pool even where another is idle."""
    run = RivalRun(fleet, requests, None, seed=1).run(Binding.ARRIVAL, policy)

    for index in range(len(fleet)):
        starts = [line.start_ms for line in run.jobs if line.pool == index]
        assert starts == sorted(starts, key=lambda at_ms: at_ms or 0.0)


def test_round_robin_on_arrival_gives_every_pool_its_turn() -> None:
    """Whatever the pools are worth."""
    fleet = tuple(PoolSpec(f"p{n}", slots=1, prefill=100, decode=n) for n in (1, 10, 100))
    requests = tuple(Request(float(n), 10, 10) for n in range(9))

    run = RivalRun(fleet, requests, None).run(Binding.ARRIVAL, "round_robin")

    assert [line.pool for line in run.jobs] == [0, 1, 2] * 3


def test_equal_pools_share_fairly_under_least_requests() -> None:
    """Ties rotate instead of all going to the first pool."""
    fleet = tuple(PoolSpec(f"p{n}", slots=4, prefill=1e6, decode=1e5) for n in range(4))
    requests = tuple(Request(1000.0 * n, 10, 10) for n in range(40))

    run = RivalRun(fleet, requests, None).run(Binding.ARRIVAL, "least_requests")

    assert Counter(line.pool for line in run.jobs) == dict.fromkeys(range(4), 10)


@given(fleet=fleets(), requests=traces(), data=st.data())
@settings(STEADY)
def test_a_deadline_ends_a_job_wherever_it_is(
    fleet: Fleet, requests: Trace, data: st.DataObject
) -> None:
    """What ends, ends in time; what does not, frees its slot for the others."""
    spans = data.draw(st.lists(st.integers(1, 4000), min_size=25, max_size=25))
    due_ms = [int(r.arrival_ms) + span for r, span in zip(requests, spans, strict=False)]
    binding, policy = data.draw(st.sampled_from(RIVALS))

    run = RivalRun(fleet, requests, due_ms, seed=1).run(binding, policy)

    for line, request, deadline_ms in zip(run.jobs, requests, due_ms, strict=True):
        assert line.deadline_ms == deadline_ms
        assert line.end_ms is None or line.end_ms <= deadline_ms
        assert line.on_time == (line.end_ms is not None)
        alone_ms = min(
            spec.service_ms(request.prompt_tokens, request.output_tokens, 1) for spec in fleet
        )
        if deadline_ms - line.arrival_ms < alone_ms - 1e-6:
            assert line.end_ms is None


def test_the_dice_come_from_the_seed() -> None:
    """The same seed gives the same run, another one another."""
    fleet = tuple(PoolSpec(f"p{n}", slots=2, prefill=1000, decode=20) for n in range(6))
    requests = tuple(Request(50.0 * n, 100, 30) for n in range(60))

    first, again, other = (
        RivalRun(fleet, requests, None, seed).run(Binding.ARRIVAL, "random").jobs
        for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other
