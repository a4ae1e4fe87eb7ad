"""The command: one seed in detail, or many of them on several cores."""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import history as h
from faults.simulation.heard import Pair
from faults.simulation.run import Run, Stats, simulate

_SHOWN_MAX = 5
_CHUNK = 10


@dataclass(slots=True)
class Totals:
    """What many runs were, and the seeds of the bad ones with what was wrong with each."""

    seeds: int = 0
    stats: Stats = field(default_factory=lambda: Stats(seed=-1))
    bad: dict[int, list[str]] = field(default_factory=dict)

    def add(self, stats: Stats, wrong: list[str]) -> None:
        """Adds one run."""
        self.seeds += 1
        total = self.stats
        total.virtual_ms += stats.virtual_ms
        total.jobs += stats.jobs
        total.kills += stats.kills
        total.cuts += stats.cuts
        total.blows += stats.blows
        total.takeovers += stats.takeovers
        total.unsent += stats.unsent
        total.acts += stats.acts
        total.ends += stats.ends
        total.heard += stats.heard
        if wrong:
            self.bad[stats.seed] = wrong

    def __str__(self) -> str:
        total = self.stats
        ends = ", ".join(f"{count} {state.lower()}" for state, count in sorted(total.ends.items()))
        return (
            f"{self.seeds} seeds, {total.virtual_ms / 3_600_000:.1f} simulated hours, "
            f"{total.blows} faults ({total.kills} kills, {total.cuts} cuts, "
            f"{total.takeovers} takeovers, {total.unsent} with a continuation unsent), "
            f"{total.acts} acts of operators, {total.jobs} jobs ({ends}): "
            f"{len(self.bad)} seeds with violations"
        )


def run_seeds(
    seeds: Sequence[int], workers: int = 2, stop_s: float | None = None
) -> Iterator[tuple[Stats, list[str]]]:
    """Runs seeds on several cores, in order; stops taking new ones after `stop_s`."""
    end_s = None if stop_s is None else time.monotonic() + stop_s
    if workers <= 1:
        for seed in seeds:
            if end_s is not None and time.monotonic() > end_s:
                return
            yield _one(seed)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done in pool.imap(_one, seeds, chunksize=_CHUNK):
            yield done
            if end_s is not None and time.monotonic() > end_s:
                pool.terminate()
                return


def _one(seed: int) -> tuple[Stats, list[str]]:
    run = simulate(seed)
    return run.stats, wrong_with(run)


def wrong_with(run: Run) -> list[str]:
    """Each violation and each error of a run, as text."""
    return [*map(str, run.violations), *run.bugs]


def reproduce(seed: int) -> str:
    """The command that runs a seed again."""
    return f"python -m faults.simulation --seed {seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line says. Exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m faults.simulation", description="Runs the system on virtual time."
    )
    parser.add_argument("--seed", type=int, help="run this one, and print what was wrong with it")
    parser.add_argument("--history", type=Path, help="with --seed: write what was seen to a file")
    parser.add_argument("--first", type=int, default=0, help="first of many seeds")
    parser.add_argument("--count", type=int, default=2_000, help="how many seeds")
    parser.add_argument("--seconds", type=float, help="run as many seeds as fit into this time")
    parser.add_argument("--orders", action="store_true", help="print what was heard after what")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        return _show(simulate(arguments.seed), arguments.history)
    return _many(arguments)


def _show(run: Run, path: Path | None) -> int:
    if path is not None:
        path.write_bytes(h.write(run.history))
    totals = Totals()
    totals.add(run.stats, wrong_with(run))
    _say("\n".join([*wrong_with(run), str(totals)]))
    return 0 if run.good else 1


def _many(arguments: argparse.Namespace) -> int:
    count = sys.maxsize if arguments.seconds else arguments.count
    seeds = range(arguments.first, arguments.first + min(count, 10_000_000))
    totals, began_s = Totals(), time.monotonic()
    for stats, wrong in run_seeds(seeds, arguments.workers, arguments.seconds):
        totals.add(stats, wrong)
        if wrong:
            shown = "\n  ".join(wrong[:_SHOWN_MAX])
            _say(f"seed {stats.seed}: {reproduce(stats.seed)}\n  {shown}")
        if totals.seeds % 1_000 == 0:
            _say(str(totals))
    _say(f"{totals}, in {time.monotonic() - began_s:.0f} s")
    if arguments.orders:
        _say(orders(totals.stats.heard))
    return 1 if totals.bad else 0


def orders(heard: Counter[Pair]) -> str:
    """A line for each word: how often it was heard of a pool, after which others, and never."""
    words = sorted({word for pair in heard for word in pair})
    lines = []
    for word in words:
        before = {other: heard[other, word] for other in words}
        often = ", ".join(f"{other} {count}" for other, count in before.items() if count)
        never = ", ".join(other for other, count in before.items() if not count)
        lines.append(f"{word} {sum(before.values())}: after {often}\n    never after {never}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
