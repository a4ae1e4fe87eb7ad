"""Of the jobs told 80 %, 80 % are on time. LO-206."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.residuals import (
    EVIDENCE_MIN,
    QUANTILES,
    RATIO_MAX,
    RENEW_EVERY,
    RESIDUALS_KEPT,
    Residuals,
    Window,
)
from tests.unit.orchestrator_core.core.settings import STEADY

RATIOS = st.lists(st.floats(0.0, 50.0), min_size=RENEW_EVERY, max_size=3 * RESIDUALS_KEPT)


def window(ratios: list[float]) -> Window:
    """A window that has seen these residuals, and as many more as its table needs."""
    made = Window()
    for ratio in ratios:
        made.add(ratio)
    return made


@STEADY
@given(RATIOS, st.floats(0.0, 60.0))
def test_the_share_below_is_that_of_the_kept_residuals(ratios: list[float], limit: float) -> None:
    """Up to the width of a quantile and what came since the table was made."""
    ratios += ratios[: -len(ratios) % RENEW_EVERY]
    ratios += ratios[: -len(ratios) % RENEW_EVERY]
    made = window(ratios)

    kept = ratios[-RESIDUALS_KEPT:]
    naive = sum(ratio <= limit for ratio in kept) / len(kept)
    newest = made.unseen / len(kept)

    assert len(made.kept) == len(made.ranked) == len(kept)
    assert sorted(made.kept) == made.ranked
    assert made.share_below(limit) == pytest.approx(naive, abs=1 / QUANTILES + newest + 1e-9)


def test_what_is_long_ago_is_forgotten() -> None:
    """A fleet that became nine times faster is judged by what it is now; censored or not."""
    made = Window()
    for n in range(2 * RESIDUALS_KEPT):
        made.add(9.0, censored=n % 2 == 0)
    for _ in range(RESIDUALS_KEPT):
        made.add(1.0)

    assert made.median() == 1.0
    assert made.share_below(1.0) == 1.0
    assert made.censored == 0
    assert len(made.kept) == len(made.ranked) == RESIDUALS_KEPT


def test_jobs_that_were_given_up_count_as_longer_than_was_seen() -> None:
    """The product-limit estimate finds the true distribution although a third was cut off."""
    rng = random.Random(5)  # noqa: S311 - a test case, not a secret
    made = Window()
    for _ in range(RESIDUALS_KEPT):
        true, patience = rng.uniform(0.0, 2.0), rng.choice((0.5, 9.0, 9.0))
        made.add(min(true, patience), censored=true > patience)

    assert made.censored > 80
    for limit in (0.4, 1.0, 1.6):
        assert made.share_below(limit) == pytest.approx(limit / 2, abs=0.08)
    ignoring = sum(ratio <= 1.0 for ratio, _ in made.kept) / RESIDUALS_KEPT
    assert abs(ignoring - 0.5) > 0.08, "without the correction it would be off"


def test_what_nobody_saw_the_end_of_is_not_promised() -> None:
    """When every job was given up, no ratio is known to be enough."""
    made = Window()
    for _ in range(20):
        made.add(0.5, censored=True)

    assert made.table == [RATIO_MAX] * QUANTILES
    assert made.share_below(100.0) == 0.0


@pytest.mark.parametrize(("given_up_at", "told"), [(0.5, 1.0), (3.0, 3.0)])
def test_a_start_that_nobody_lived_to_see_is_told_by_what_was_seen(
    given_up_at: float, told: float
) -> None:
    """A client is told minutes, not the thousandfold, where most jobs expire while they wait."""
    made = Window()
    for _ in range(RENEW_EVERY):
        made.add(given_up_at, censored=True)

    assert made.median() == told
    assert made.median_above(0.4) == max(1.0, given_up_at)


def test_without_evidence_the_prediction_itself_decides() -> None:
    """0 or 1, and never a probability from a handful of jobs."""
    residuals = Residuals()
    for _ in range(EVIDENCE_MIN - 1):
        residuals.service_at_once.add(9.0)

    assert residuals.on_time_probability(0, 100, 100, waited=False) == 1.0
    assert residuals.on_time_probability(0, 100, 99, waited=False) == 0.0
    assert residuals.on_time_probability(50, 100, 149, waited=True) == 0.0
    assert residuals.finish_probability(100, 60, 40, waited=False) == 1.0
    assert residuals.finish_probability(100, 60, 39, waited=False) == 0.0


@pytest.mark.parametrize("left_ms", [900, 1_400, 1_900, 2_600, 4_000])
def test_both_errors_of_a_waiting_job_count(left_ms: int) -> None:
    """The probability is that of a start and a service drawn independently."""
    rng = random.Random(left_ms)  # noqa: S311 - a test case, not a secret
    residuals = Residuals()
    starts = [rng.uniform(0.5, 1.5) for _ in range(RESIDUALS_KEPT)]
    services = [rng.uniform(0.2, 3.0) for _ in range(RESIDUALS_KEPT)]
    for start, service in zip(starts, services, strict=True):
        residuals.start.add(start)
        residuals.service_waited.add(service)

    told = residuals.on_time_probability(1_000, 800, left_ms, waited=True)

    drawn = [
        1_000 * rng.choice(starts) + 800 * rng.choice(services) <= left_ms for _ in range(20_000)
    ]
    assert told == pytest.approx(sum(drawn) / len(drawn), abs=0.04)


def test_a_job_that_has_run_for_long_is_judged_by_those_that_ran_as_long() -> None:
    """Given that three quarters of the ratios are past, the last quarter decides."""
    residuals = Residuals()
    for n in range(RESIDUALS_KEPT):
        residuals.service_at_once.add(0.5 if n % 4 else 2.0)

    assert residuals.finish_probability(1_000, 0, 600, waited=False) == pytest.approx(
        0.75, abs=0.04
    )
    assert residuals.finish_probability(1_000, 600, 400, waited=False) == 0.0
    assert residuals.finish_probability(1_000, 600, 1_400, waited=False) == 1.0
    assert residuals.finish_probability(1_000, 5_000, 10, waited=False) == 0.5
