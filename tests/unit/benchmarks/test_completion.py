"""The verdicts of the completion benchmark."""

from dataclasses import replace

import pytest

from benchmarks.completion import Ratios, judge

GOOD = Ratios(0.7, arrival_mean=0.4, late_mean=0.96, late_p95=0.96, greedy_mean=1.0, bound=2.0)
UNIFORM = replace(GOOD, arrival_mean=1.01, late_mean=1.01, late_p95=1.01)


def three(last: Ratios, others: Ratios = GOOD) -> list[Ratios]:
    """A result per load."""
    return [others, replace(others, load=0.85), replace(last, load=0.95)]


@pytest.mark.parametrize("name", ["homelab", "mixed_rack"])
def test_results_within_every_bar_pass(name: str) -> None:
    """On `uniform_rack` also at the bars themselves."""
    assert judge(name, three(GOOD))
    assert judge("uniform_rack", three(UNIFORM, UNIFORM))


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("mixed_rack", replace(GOOD, arrival_mean=0.71)),
        ("homelab", replace(GOOD, arrival_mean=1.31)),
        ("homelab", replace(GOOD, late_mean=1.001)),
        ("homelab", replace(GOOD, late_p95=1.001)),
        ("homelab", replace(GOOD, greedy_mean=1.001)),
        ("uniform_rack", replace(UNIFORM, late_mean=1.011)),
        ("uniform_rack", replace(UNIFORM, late_p95=1.011)),
        ("uniform_rack", replace(UNIFORM, arrival_mean=1.011)),
    ],
)
def test_one_result_beyond_its_bar_fails(
    name: str, worse: Ratios, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is named."""
    others = UNIFORM if name == "uniform_rack" else GOOD

    assert not judge(name, three(worse, others))
    assert capsys.readouterr().out.count("FAIL") == 1


def test_the_average_over_the_loads_is_judged_against_late_binding() -> None:
    """One load may be above where the others make up for it."""
    good, bad = replace(GOOD, late_mean=0.95), replace(GOOD, late_mean=0.99)

    assert judge("homelab", three(bad, good))
    assert not judge("homelab", three(bad, bad))
