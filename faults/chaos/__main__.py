"""`make chaos`: one campaign, its table, and exit code 1 when a promise was broken."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from faults import history
from faults.chaos.campaign import Campaign, Options, Result
from faults.chaos.fleet import EXACT_MODEL, MOCK_MODEL
from faults.chaos.six import Six, six

SHOWN_MAX = 20


def main() -> int:
    """Runs a campaign; its directory is kept when something was wrong."""
    options = _options()
    console = Console(highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="llama-orch-chaos-"))
    console.print(f"seed {options.seed}, logs in {directory}")
    sixes = [asyncio.run(_six(engine)) for engine in _engines(options)]
    for result_of_six in sixes:
        console.print(str(result_of_six), soft_wrap=True)
    result = asyncio.run(Campaign(options, directory).run())
    console.print(table(result))
    for problem in result.problems[:SHOWN_MAX]:
        console.print(f"problem: {problem}", style="red")
    for violation in result.violations[:SHOWN_MAX]:
        console.print(f"violation: {violation}", style="red", soft_wrap=True)
    if result.passed and all(result_of_six.passed for result_of_six in sixes):
        shutil.rmtree(directory)
        return 0
    (directory / "history.jsonl").write_bytes(history.write(result.history))
    console.print(f"kept: {directory}")
    return 1


async def _six(engine: str) -> Six:
    with tempfile.TemporaryDirectory(prefix="llama-orch-six-") as directory:
        return await six(Path(directory), engine)


def _engines(options: Options) -> tuple[str, ...]:
    return (MOCK_MODEL, EXACT_MODEL) if options.engines else (MOCK_MODEL,)


def table(result: Result) -> Table:
    """The figures of a campaign."""
    faults, notes = result.faults, result.notes
    jobs = result.options.clients * result.options.jobs
    finished = sum(notes.outcomes.get(job_id) == "FINISHED" for job_id in result.expected)
    rows = {
        "kills": _counts(faults.kills),
        "stops": _counts(faults.stops),
        "failpoints": f"{len(faults.reached)} of {len(faults.wanted)} died or stopped at",
        "jobs": f"{jobs} that must complete, {len(notes.tasks) - len(result.expected)} others",
        "completed with the right bytes": f"{finished} of {jobs}",
        "others": _outcomes(result),
        "streams resumed": str(notes.resumes),
        "replays": f"{notes.replays} verified, {notes.restarts} silent restarts, "
        f"{notes.continuations} continued",
        "time to resume after a kill": _percentiles(notes.resume_once_ms),
        "the same, hit again meanwhile too": _percentiles(notes.resume_ms),
        "violations": str(len(result.violations)),
        "problems": str(len(result.problems)),
        "wall time": f"{result.wall_s:.0f} s",
    }
    shown = Table(show_header=False, title="chaos")
    for name, value in rows.items():
        shown.add_row(name, value)
    if faults.cut_short:
        shown.add_row("faults ended", faults.cut_short)
    missing = sorted(faults.wanted - faults.reached)
    if missing:
        shown.add_row("not reached", ", ".join(missing))
    return shown


def _counts(counter: "dict[str, int]") -> str:
    parts = [f"{name} {count}" for name, count in sorted(counter.items())]
    return f"{sum(counter.values())}: " + ", ".join(parts)


def _outcomes(result: Result) -> str:
    counts: dict[str, int] = {}
    for name, outcome in result.notes.outcomes.items():
        if name not in result.expected:
            kind = outcome.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "none"


def _percentiles(spans_ms: list[int]) -> str:
    if not spans_ms:
        return "no stream was broken"
    ordered = sorted(spans_ms)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return f"p50 {at(0.5)} ms, p99 {at(0.99)} ms, n = {len(ordered)}"


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    defaults = Options()
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--clients", type=int, default=defaults.clients)
    parser.add_argument("--jobs", type=int, default=defaults.jobs, help="of each client")
    parser.add_argument("--hosts", type=int, default=defaults.hosts)
    parser.add_argument("--limit-s", type=float, default=defaults.limit_s)
    parser.add_argument("--overlap", type=int, default=defaults.overlap, help="faults at a time")
    parser.add_argument("--no-points", action="store_true", help="random moments alone")
    parser.add_argument("--no-engines", action="store_true", help="the mock engine alone")
    found = parser.parse_args()
    return Options(
        seed=found.seed,
        clients=found.clients,
        jobs=found.jobs,
        hosts=found.hosts,
        engines=not found.no_engines,
        points=not found.no_points,
        overlap=found.overlap,
        limit_s=found.limit_s,
    )


if __name__ == "__main__":
    sys.exit(main())
