"""Kills pool managers without warning and looks for engines that outlive them. `make orphans`.

    python -m faults.orphans [--kills 100] [--seed 1]

Each round starts the real `pool-managerd` with three pools: the embedded llama.cpp, a launched
server that starts helpers and abandons them, and one whose processes ignore SIGTERM. After a random
time, in the middle of a start or long after it, `kill -9` ends the pool manager. Every process of
the round carries a mark in its environment; whoever still has it five seconds later is an orphan.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pool_managerd.models.tiny_gguf import write_tiny_model

# Of a kind that engines inherit.
MARK = "LC_LLAMAORCH_ORPHANS_MARK"
PATIENCE_S = 5.0
POLL_S = 0.01
START_TIMEOUT_S = 60.0
# Every other round is cut at a random moment after the first process below is there.
START_S = 0.0, 0.6
SERVER = Path(__file__).resolve().parent.parent / "benchmarks" / "load" / "llama_engine.py"
TOML = """
orchestrator = "127.0.0.1:9"
listen = "127.0.0.1:0"
devices = "cpu"

[[pools]]
pool_id = "embedded"
[pools.engine]
kind = "embedded"
model_path = "tiny.gguf"
model_id = "tiny"

[[pools]]
pool_id = "meek"
[pools.engine]
kind = "llama_server"
model_id = "m"
[pools.engine.launch]
command = ["{python}", "-S", "{server}", "--port", "{{port}}", "--helpers", "2"]

[[pools]]
pool_id = "stubborn"
[pools.engine]
kind = "llama_server"
model_id = "m"
[pools.engine.launch]
command = ["{python}", "-S", "{server}", "--port", "{{port}}", "--helpers", "2", "--stubborn"]
"""
# The worker; twice a warden, its server and two helpers.
PROCESSES_READY = 1 + 2 * 4


@dataclass(slots=True)
class Tally:
    """What the rounds showed. Times are milliseconds from the kill to the last end."""

    rounds: int = 0
    below: Counter[int] = field(default_factory=Counter)
    gone_ms: list[float] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def main() -> int:
    """Prints what became of the engines; exit 1 when one outlived its pool manager."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"python -m faults.orphans --kills {arguments.kills} --seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="llama-orch-orphans-") as directory:
        tally = run(Path(directory), arguments.kills, random.Random(arguments.seed))  # noqa: S311 - it repeats
    _report(tally)
    return 1 if tally.orphans else 0


def run(directory: Path, kills: int, dice: random.Random) -> Tally:
    """Kills `kills` pool managers, one after another."""
    write_tiny_model(directory / "tiny.gguf")
    config = directory / "pool-managerd.toml"
    config.write_text(TOML.format(python=sys.executable, server=SERVER), encoding="utf-8")
    tally = Tally()
    for number in range(kills):
        cut_s = dice.uniform(*START_S) if number % 2 else None
        _round(config, cut_s, tally)
    return tally


def _round(config: Path, cut_s: float | None, tally: Tally) -> None:
    mark = uuid.uuid4().hex
    arguments = [sys.executable, "-m", "pool_managerd", "--config", str(config)]
    with (config.parent / "pool-managerd.log").open("wb") as log:
        manager = subprocess.Popen(  # noqa: S603 - our own program
            arguments, env=os.environ | {MARK: mark}, stderr=log
        )
    try:
        _until_below(manager, mark, PROCESSES_READY if cut_s is None else 1)
        time.sleep(cut_s or 0.0)
        below = len(marked(mark)) - 1
        killed_s = time.monotonic()
        manager.send_signal(signal.SIGKILL)
        manager.wait()
        left = _left_after_patience(mark, killed_s, tally)
        tally.rounds += 1
        tally.below[below] += 1
        tally.orphans += [f"{process.pid} {' '.join(_command(process))}" for process in left]
    finally:
        for process in marked(mark):
            process.kill()


def _until_below(manager: "subprocess.Popen[bytes]", mark: str, count: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while len(marked(mark)) < 1 + count:
        if manager.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError("the pool manager did not bring up its engines")
        time.sleep(POLL_S)


def _left_after_patience(mark: str, killed_s: float, tally: Tally) -> list[psutil.Process]:
    while left := marked(mark):
        if time.monotonic() - killed_s > PATIENCE_S:
            return left
        time.sleep(POLL_S)
    tally.gone_ms.append(1000 * (time.monotonic() - killed_s))
    return []


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with `mark` in their environment."""
    return [process for process in psutil.process_iter() if _has(process, mark)]


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["?"]


def _report(tally: Tally) -> None:
    spread = ", ".join(f"{count} x {below}" for below, count in sorted(tally.below.items()))
    print(f"{tally.rounds} kills; processes below the pool manager when it was killed: {spread}")
    if tally.gone_ms:
        ordered = sorted(tally.gone_ms)
        print(
            f"all of them gone after: p50 {ordered[len(ordered) // 2]:.0f} ms, "
            f"max {ordered[-1]:.0f} ms"
        )
    for orphan in tally.orphans:
        print(f"orphan: {orphan}", file=sys.stderr)
    count = len(tally.orphans)
    print(f"{count or 'no'} orphan{'s' if count > 1 else ''} after {tally.rounds} kills")


if __name__ == "__main__":
    sys.exit(main())
