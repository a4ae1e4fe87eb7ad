"""The real core on virtual time."""

import pytest
from hypothesis import given, settings

from orchestrator_core.core.events import AttemptEnded, Event
from orchestrator_core.simulator.core_run import CoreOptions, CoreRun
from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.study import CORE_POLICIES, deadlines_ms
from orchestrator_core.simulator.traces import Request
from tests.unit.orchestrator_core.core.settings import STEADY
from tests.unit.orchestrator_core.simulator.cases import HOMELAB, fleets, traces

Fleet, Trace = tuple[PoolSpec, ...], tuple[Request, ...]


class Watched(CoreRun):
    """Compares the core's account of every pool with the simulated truth after every step."""

    steps = frame_seq = 0

    def _step(self, event: Event, now_ms: float) -> None:
        super()._step(event, now_ms)
        self.steps += 1
        if isinstance(event, AttemptEnded):
            request = self._requests[int(event.job_id)]
            told = event.usage.tokens_in, event.usage.tokens_out
            assert told == (request.prompt_tokens, request.output_tokens)
            assert event.frame_seq > self.frame_seq
            self.frame_seq = event.frame_seq
        for pool in self._engine.pools:
            known = self._core.pools[pool.spec.id]
            assert known.occupied() == pool.busy, (event, now_ms)
            assert known.fresh(int(now_ms), 5_000) or not self._outstanding


@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=40)
def test_the_core_and_the_pools_agree_at_every_step(fleet: Fleet, requests: Trace) -> None:
    """And every job is served, in order of arrival."""
    watched = Watched(fleet, requests, None, CoreOptions())

    run = watched.run("predicted_end")

    assert watched.steps > len(requests)
    assert len(run.jobs) == len(requests)
    assert all(line.end_ms is not None for line in run.jobs)


@given(fleet=fleets(), requests=traces())
@settings(STEADY, max_examples=40)
def test_deadlines_end_jobs_wherever_they_are(fleet: Fleet, requests: Trace) -> None:
    """Core and pools still agree; what ended, ended in time."""
    due_ms = deadlines_ms(requests, fleet, seed=5)

    run = Watched(fleet, requests, due_ms, CoreOptions()).run("predicted_end")

    assert len(run.jobs) == len(requests)
    for line in run.jobs:
        assert line.on_time_probability is not None
        assert line.end_ms is None or line.end_ms <= (line.deadline_ms or 0)


def test_a_job_alone_takes_what_the_pool_needs() -> None:
    """Prefill and 85 tokens a second on the fast pool; its prediction is exact from the start."""
    requests = (Request(0.0, 3200, 85),)

    run = CoreRun(HOMELAB, requests, None, CoreOptions(hints=True)).run("predicted_end")

    (line,) = run.jobs
    assert (line.pool, line.start_ms, line.end_ms) == (0, 0.0, pytest.approx(2000.0))
    assert line.first_ms == pytest.approx(1000.0 + 1000.0 / 85)
    assert line.predicted_end_ms == pytest.approx(2000, abs=2)


def test_the_fleet_is_not_stale_after_a_long_pause() -> None:
    """Nothing reports while there is nothing to do; the next job starts at once all the same."""
    requests = (Request(0.0, 10, 10), Request(3_600_000.0, 10, 10))

    run = CoreRun(HOMELAB, requests, None, CoreOptions()).run("predicted_end")

    assert run.jobs[1].start_ms == 3_600_000.0


def test_the_same_run_twice_is_the_same() -> None:
    """No clock, no dice."""
    requests = tuple(Request(137.0 * n, 50 * (n % 40), 1 + 7 * n % 200) for n in range(200))

    first, again = (
        CoreRun(HOMELAB, requests, None, CoreOptions()).run("predicted_end").jobs for _ in range(2)
    )

    assert first == again


def test_an_unknown_setting_of_the_core_is_refused() -> None:
    """Before anything is simulated."""
    with pytest.raises(ValueError, match="no setting 'speed'"):
        CoreOptions({"speed": 3})


def test_the_variants_of_the_core_leave_predicted_end_as_it_is_configured() -> None:
    """The first policy is the core as shipped."""
    assert CORE_POLICIES["predicted_end"] == {}
