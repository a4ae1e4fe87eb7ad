"""The benchmark of the core works, and what it counts does not grow with the queue."""

import pytest

from benchmarks.core import (
    Cost,
    Verdicts,
    calls_per_cycle,
    calls_per_operation,
    cancels,
    main,
    positions,
    queued_bytes,
    tenfold,
)
from benchmarks.core_cases import EIGHT_LANES, ONE_KIND, Kind, Lives, Load
from orchestrator_core.core.spec import Priority

SHALLOW, DEEP = 100, 5_000
# Which end of a short run of a sorted set is touched, or whether a heap is tidied, may differ.
SLACK = 1.02


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_run_prints_every_table_and_judges_every_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is refused on the way, and a bar that is missed only counts where that is asked."""
    assert main(["--quick"]) == 0

    printed = capsys.readouterr().out
    for heading in ("python -m benchmarks.core --quick", "placement:", "core:", "memory:"):
        assert heading in printed
    assert printed.count("PASS") + printed.count("FAIL") == 6


def test_strict_run_tells_a_missed_bar_from_one_that_is_met(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the bar is within it, from either side."""
    verdicts = Verdicts()

    verdicts.judge("at most", 2.0, 2.0)
    verdicts.judge("at least", 2.0, 2.0, least=True)
    assert verdicts.missed == 0
    verdicts.judge("at most", 2.1, 2.0)
    verdicts.judge("at least", 1.9, 2.0, least=True)

    assert verdicts.missed == 2
    assert capsys.readouterr().out.count("FAIL") == 2


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_growth_is_the_power_of_the_size(power: float) -> None:
    """Ten for linear, one for flat, a hundred for quadratic."""
    costs = {n: Cost(3.0 * n**power, 0.0, 0.0, 1.0) for n in (100, 1_000, 10_000)}

    assert tenfold(costs) == pytest.approx(10.0**power)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [ONE_KIND, EIGHT_LANES], ids=["one lane", "eight lanes"])
def test_operations_per_job_do_not_grow_with_the_queue(kinds: tuple[Kind, ...]) -> None:
    """Calls, of Python and of C, in the life of a job, a cancel and a question for a position."""
    shallow, deep = (Lives(Load(2, waiting, kinds)) for waiting in (SHALLOW, DEEP))

    assert deep.core.queue_depth() == DEEP
    assert calls_per_cycle(deep, 72) <= SLACK * calls_per_cycle(shallow, 72)
    for operation in (cancels, positions):
        counts = [calls_per_operation(lives, operation, 36) for lives in (shallow, deep)]
        assert counts[1] <= SLACK * counts[0]


def test_queue_keeps_its_depth_and_its_lanes_while_jobs_live() -> None:
    """Eight interactive jobs and one of batch take turns, in every lane."""
    lives = Lives(Load(2, 72, EIGHT_LANES))
    before = [lives.core.queue_depth(priority) for priority in Priority]

    lives.play(360)

    assert sum(before) == lives.core.queue_depth() == 72
    after = [lives.core.queue_depth(priority) for priority in Priority]
    assert after == pytest.approx(before, abs=8)
    assert not lives.declined


def test_slow_pool_is_declined_by_everybody_and_stays_idle() -> None:
    """The worst case of offers is one: whoever comes to the front lets the slot pass."""
    load = Load(2, 100, slow_pool=True)
    lives = Lives(load)
    before = lives.declined

    lives.play(50)

    assert lives.declined - before >= 40
    assert lives.core.pools[load.slow_pool_id].busy == 0


def test_bytes_of_a_waiting_job_are_those_without_its_prompt() -> None:
    """More than the ids that it came with, less than the bar."""
    assert 1_000 < queued_bytes(2, 100) < 6_000
