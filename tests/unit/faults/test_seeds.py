"""Fault seeds in the suite; `make fault-seeds` and `make soak` run more of them."""

import pytest

from faults.simulation.command import Totals, reproduce, run_seeds

FIRST = range(250)
MORE = range(250, 900)

MET = (
    "back anew with ends",
    "started former",
    "finished former",
    "finished overtaken",
    "died overtaken",
    "output overtaken",
)
"""What is heard in an order that once hid a defect, or may: see `faults.simulation.heard`."""


def _run(seeds: range) -> Totals:
    """Runs seeds up to the first bad one, which it names."""
    totals = Totals()
    for stats, wrong in run_seeds(seeds):
        totals.add(stats, wrong)
        assert not wrong, "\n".join((reproduce(stats.seed), *wrong[:3]))
    return totals


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_the_first_seeds_violate_no_invariant() -> None:
    """Crashes, cuts, silence and bad disks cost no job, no byte and no promise. LO-305, LO-301.

    Planted bugs are found by these.
    """
    totals = _run(FIRST)

    # Seeds in which nothing happens would prove nothing.
    assert totals.seeds == len(FIRST)
    assert totals.stats.kills > len(FIRST) / 2
    assert totals.stats.acts > len(FIRST)
    assert totals.stats.ends["FINISHED"] > len(FIRST)
    assert {"CANCELLED", "DROPPED", "EXPIRED", "FAILED"} <= totals.stats.ends.keys()
    assert {word for _, word in totals.stats.heard} >= set(MET)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_seeds_violate_no_invariant() -> None:
    """The same for many more."""
    assert _run(MORE).seeds == len(MORE)
