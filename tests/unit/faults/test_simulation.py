"""Fault seeds: both services, their clients and everything that may happen to them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults import history as h
from faults.simulation.command import main, wrong_with
from faults.simulation.run import simulate

SAME = (0, 8, 11)

_HASHES = """
import hashlib
from faults import history as h
from faults.simulation.run import simulate
for seed in {seeds}:
    print(hashlib.sha256(h.write(simulate(seed).history)).hexdigest())
"""


@pytest.mark.parametrize("seed", SAME)
def test_a_seed_is_one_run(seed: int) -> None:
    """The same seed gives the same history to the byte."""
    first, second = simulate(seed), simulate(seed)

    assert h.write(first.history) == h.write(second.history)
    assert first.stats == second.stats


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_seed_is_one_run_in_every_process() -> None:
    """Neither the order of hashes nor that of addresses matters."""
    told = []
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", _HASHES.format(seeds=SAME)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=130,
            check=True,
        )
        told.append(done.stdout)
    here = [hashlib.sha256(h.write(simulate(seed).history)).hexdigest() for seed in SAME]

    assert told == ["\n".join(here) + "\n"] * 2


def test_seeds_differ() -> None:
    """Another seed is another story."""
    assert simulate(1).history != simulate(2).history


def test_a_run_is_whole() -> None:
    """A run has jobs that were acknowledged, faults that struck, and an end; it reads back."""
    run = simulate(8)
    kinds = {type(event) for event in run.history}

    assert {h.EnqueueAcked, h.TextDelivered, h.Outcome, h.AttemptBegan, h.Healed} <= kinds
    assert run.stats.kills > 0
    assert h.read(h.write(run.history)) == run.history
    assert wrong_with(run) == []


def test_the_command_writes_the_history_of_a_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--seed N --history FILE` runs it again and keeps what was seen."""
    path = tmp_path / "history.jsonl"

    assert main(["--seed", "5", "--history", str(path)]) == 0

    assert h.read(path.read_bytes()) == simulate(5).history
    assert "1 seeds" in capsys.readouterr().out
