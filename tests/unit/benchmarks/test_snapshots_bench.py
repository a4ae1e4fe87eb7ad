"""The benchmark of device reading runs, and counts what it says it counts."""

from pathlib import Path

import pytest

from benchmarks.snapshots import Cost, run, table
from tests.nvml_stub.stub import NO_COMPILER, build, compiler


@pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
def test_a_short_run_measures_both_sides(tmp_path: Path) -> None:
    """Every part costs something, and the report holds a pool for each GPU."""
    costs, size = run(build(tmp_path), gpus=3, rounds=2, readings=5)

    assert len(costs) == 2
    assert all(min(cost.read_ms, cost.build_ms, cost.bare_ms) > 0 for cost in costs)
    assert 3 * 100 < size < 3 * 1_000


def test_the_table_shows_the_best_and_the_median_of_rounds() -> None:
    """Totals and ratios are of the columns beside them."""
    text = table(8, [Cost(2.0, 1.0, 1.0, 0.5), Cost(4.0, 3.0, 1.0, 1.0)], 1_500)

    best, median = (line.split() for line in text.splitlines())
    assert best == ["8", "best", "2.00", "1.00", "1.00", "4.00", "0.50", "4.0", "8.0", "1,500"]
    assert median[1:6] == ["median", "3.00", "2.00", "1.00", "6.00"]
