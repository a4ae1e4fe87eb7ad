"""The campaign that looks for engines without a pool manager, in short. ORCH-3200."""

import random
from pathlib import Path

from faults.orphans import PROCESSES_READY, run


def test_no_engine_outlives_a_killed_pool_manager(tmp_path: Path) -> None:
    """Embedded, abandoned and stubborn processes are all there, and all gone after the kill."""
    tally = run(tmp_path, 1, random.Random(1))  # noqa: S311 - it repeats

    assert tally.orphans == []
    assert list(tally.below) == [PROCESSES_READY]
    assert len(tally.gone_ms) == 1
