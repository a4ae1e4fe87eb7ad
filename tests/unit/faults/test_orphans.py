"""The campaign that looks for engines without a pool manager, in short. ORCH-3200."""

import random
from pathlib import Path

from faults.orphans import PROCESSES_READY, run


def test_no_engine_outlives_a_killed_pool_manager(tmp_path: Path) -> None:
    """Embedded, abandoned and stubborn processes are all there, and all gone after the kill."""
    tally = run(tmp_path, 1, random.Random(1))  # noqa: S311 - it repeats

    assert tally.orphans == []
    # A helper's first process may just have ended: that is how it leaves its parent.
    assert min(tally.below) >= PROCESSES_READY - 2
    assert len(tally.gone_ms) == 1
