"""Jobs survive the death of every process: short forms of `make chaos`."""

from pathlib import Path

import psutil
import pytest

from faults.chaos.campaign import Campaign, Options
from faults.chaos.fleet import EXACT_MODEL, MOCK_MODEL
from faults.chaos.six import six


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_short_campaign_loses_nothing(tmp_path: Path) -> None:
    """Each kind of process is killed once or more; every job completes with the right bytes."""
    options = Options(seed=1, clients=2, jobs=10, points=False, kinds_first=True, limit_s=220.0)

    result = await Campaign(options, tmp_path).run()

    assert result.problems == []
    assert [str(violation) for violation in result.violations] == []
    assert {"engine", "orchestratord", "pool-managerd"} <= set(result.faults.kills)
    assert [result.notes.outcomes[job_id] for job_id in result.expected] == ["FINISHED"] * 20
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", [MOCK_MODEL, EXACT_MODEL])
async def test_an_engine_killed_under_six_streams_costs_none(tmp_path: Path, engine: str) -> None:
    """Six streams on two pools: six of six complete with the right bytes."""
    result = await six(tmp_path, engine)

    assert result.passed, str(result)
    assert result.resume_ms
    assert left_behind(tmp_path) == []


def left_behind(directory: Path) -> list[int]:
    """Processes that still work in a directory."""
    return [
        process.pid
        for process in psutil.process_iter(["cwd", "cmdline"])
        if str(directory) in (process.info["cwd"] or "", *(process.info["cmdline"] or ()))
        or any(str(directory) in part for part in process.info["cmdline"] or ())
    ]
