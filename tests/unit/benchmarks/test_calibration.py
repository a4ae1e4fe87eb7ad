"""The verdicts of the calibration benchmark."""

from dataclasses import replace

import pytest

from benchmarks.calibration import Measured, judge
from orchestrator_core.simulator.measures import Calibration

FIT = Calibration(jobs=100, base_rate=0.5, ece=0.05, brier=0.1, brier_skill=0.6, bins=())
GOOD = Measured(0.7, [0.1, 0.2, 0.3], 0.2, FIT)


def three(*errors: list[float], fit: Calibration | None = FIT) -> list[Measured]:
    """A result per load; `fit` is that of the last."""
    loads = (0.7, 0.85, 0.95)
    found = [replace(GOOD, load=a, start_errors=e) for a, e in zip(loads, errors, strict=True)]
    return [*found[:-1], replace(found[-1], fit=fit)]


def test_a_fleet_within_its_bars_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """At the bars themselves too."""
    assert judge("homelab", three([0.1, 0.2], [0.2], [0.3]))

    assert "FAIL" not in capsys.readouterr().out


def test_the_start_error_is_judged_over_the_jobs_of_all_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A load that is above is named, and made up for by jobs, not by loads."""
    assert judge("homelab", three([0.4, 0.4], [0.1, 0.1], [0.1]))
    shown = capsys.readouterr().out.splitlines()
    assert "0.400 (2)" in shown[0]
    assert shown[0].endswith("(start missed at this load)")
    assert "0.100 (5)" in shown[3]

    assert not judge("homelab", three([0.4, 0.4, 0.4], [0.1], [0.1]))
    assert "FAIL" in capsys.readouterr().out.splitlines()[3]


def test_where_nobody_waited_nobody_was_told_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """An idle fleet meets the bar of starts."""
    assert judge("mixed_rack", three([], [], []))

    assert capsys.readouterr().out.count("nobody waited") == 4


@pytest.mark.parametrize(
    "fit",
    [None, replace(FIT, ece=0.051), replace(FIT, brier_skill=0.1), replace(FIT, brier_skill=None)],
)
def test_probabilities_are_judged_at_each_load(fit: Calibration | None) -> None:
    """One load beyond its bars is enough to fail."""
    assert not judge("homelab", three([], [], [], fit=fit))
