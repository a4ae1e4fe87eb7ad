"""Numbers that sum up a run."""

import pytest

from orchestrator_core.simulator.measures import Calibration, calibration, spread, summarise
from orchestrator_core.simulator.results import JobLine, Run


def known(pairs: list[tuple[float, bool]]) -> Calibration:
    """A calibration that exists."""
    found = calibration(pairs)
    assert found is not None
    return found


def test_percentiles_are_nearest_rank() -> None:
    """The value at or above the share."""
    found = spread([float(n) for n in range(100, 0, -1)])

    assert found is not None
    assert (found.mean_ms, found.p50_ms, found.p95_ms, found.p99_ms) == (50.5, 50, 95, 99)
    assert spread([]) is None


def test_probabilities_that_come_true_have_no_calibration_error() -> None:
    """A quarter and three quarters, each as often as said; skill by hand."""
    pairs = [(0.25, n == 0) for n in range(4)] + [(0.75, n != 0) for n in range(4)]

    found = known(pairs)

    assert found.ece == pytest.approx(0.0)
    assert found.base_rate == 0.5
    assert found.brier == pytest.approx(0.1875)
    assert found.brier_skill == pytest.approx(1 - 0.1875 / 0.25)


def test_calibration_error_weighs_bins_by_their_jobs() -> None:
    """Three jobs off by 0.1, one by 0.95."""
    found = known([(0.9, True), (0.9, True), (0.9, True), (0.05, True)])

    assert found.ece == pytest.approx((3 * 0.1 + 0.95) / 4)
    assert found.brier_skill is None
    assert [b.jobs for b in found.bins] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_certainty_belongs_to_the_last_bin() -> None:
    """A probability of 1 has no bin of its own."""
    assert known([(1.0, True)]).bins[-1].jobs == 1


def test_prediction_errors_leave_out_warm_up_and_short_waits() -> None:
    """Of four jobs one is warm-up and one waits for a second at most."""
    waits = [(4000.0, 0), (1000.0, 0), (2000.0, 1000), (4000.0, 5000)]
    lines = [
        JobLine(
            arrival_ms=10.0,
            pool=0,
            start_ms=10.0 + wait_ms,
            end_ms=10.0 + wait_ms,
            predicted_start_ms=guess_ms,
        )
        for wait_ms, guess_ms in waits
    ]

    summary = summarise(Run("x", lines, (2000.0,), 4000.0), [2], warm_up=0.25)

    assert summary.start_error is not None
    assert summary.start_error.jobs == 2
    assert summary.start_error.median_relative == pytest.approx((0.5 + 0.25) / 2)
    assert summary.end_error is None
    assert summary.utilisation == (0.25,)


def test_a_job_that_never_ended_is_late() -> None:
    """So is one that ended after its deadline; those without one do not count."""
    lines = [
        JobLine(0.0, end_ms=5.0, deadline_ms=5),
        JobLine(0.0, end_ms=6.0, deadline_ms=5),
        JobLine(0.0, deadline_ms=5),
        JobLine(0.0, end_ms=9.0),
    ]

    summary = summarise(Run("x", lines, (0.0,), 9.0), [1], warm_up=0.0)

    assert summary.on_time_share == 1 / 3
    assert summary.finished == 3
