"""Probabilities and starts that waiting jobs are told come true, on simulated fleets. LO-206."""

from pathlib import Path

import pytest

from orchestrator_core.simulator import fleets
from orchestrator_core.simulator.core_run import CoreOptions, CoreRun
from orchestrator_core.simulator.fleets import PoolSpec, load_fleet
from orchestrator_core.simulator.load import scaled
from orchestrator_core.simulator.measures import summarise
from orchestrator_core.simulator.study import deadlines_ms
from orchestrator_core.simulator.traces import synthetic

SHIPPED = Path(fleets.__file__).parent / "data" / "fleets.toml"
JOBS, LOAD, WARM_UP, SEED = 2_500, 0.95, 0.2, 4


RACK = (
    *(PoolSpec(f"new{n}", slots=8, prefill=9000, decode=65, slope=0.05) for n in range(2)),
    *(PoolSpec(f"old{n}", slots=4, prefill=1100, decode=20, slope=0.15) for n in range(3)),
)


@pytest.mark.parametrize(
    ("fleet", "start_error_max"),
    [(load_fleet(SHIPPED, "homelab"), 0.45), (RACK, 0.7)],
    ids=["homelab", "rack"],
)
def test_what_jobs_are_told_comes_true(fleet: tuple[PoolSpec, ...], start_error_max: float) -> None:
    """Bursts of jobs with skewed lengths and deadlines, of which the core knows no length.

    The bounds of the issue for probabilities; those of starts are loose, since a start depends on
    lengths that nobody knows.
    """
    requests = scaled(synthetic(SEED, JOBS), fleet, LOAD)
    due_ms = deadlines_ms(requests, fleet, SEED)

    run = CoreRun(fleet, requests, due_ms, CoreOptions()).run("predicted_end")

    summary = summarise(run, [pool.slots for pool in fleet], WARM_UP)
    told, start = summary.calibration, summary.start_error
    assert told is not None
    assert told.jobs == JOBS - int(JOBS * WARM_UP)
    assert told.ece <= 0.08
    assert told.brier_skill is not None
    assert told.brier_skill > 0.05
    assert start is not None
    assert start.jobs > 200
    assert start.median_relative < start_error_max
