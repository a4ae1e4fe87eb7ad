"""What a study says: tables for people, one JSON object for programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from orchestrator_core.simulator.fleets import PoolSpec, kind_of
from orchestrator_core.simulator.measures import Spread, Summary
from orchestrator_core.simulator.results import Run

FORMAT, VERSION = "llamaorch-simulation", 1
PREDICTIONS = "predictions after warm-up: median relative error (jobs over 1 s), calibration"
# Lines are never wrapped or cut here; a narrow terminal breaks them itself.
TABLE_WIDTH = 400


@dataclass(frozen=True, slots=True)
class Result:
    """One fleet under every policy. `least_mean_ms` is the clairvoyant bound."""

    label: str
    fleet: tuple[PoolSpec, ...]
    load: float
    least_mean_ms: float
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]


def as_record(asked: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Returns the whole answer for JSON; the same study gives the same record.

    `asked` repeats the question. Times are milliseconds, from arrival where they are spans.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "asked": asked,
        "results": [
            {
                "label": result.label,
                "pools": [asdict(pool) for pool in result.fleet],
                "load": result.load,
                "least_mean_completion_ms": result.least_mean_ms,
                "policies": [asdict(summary) for summary in result.summaries],
            }
            for result in results
        ],
    }


def print_tables(results: Sequence[Result], out: TextIO) -> None:
    """Writes the tables: completion, utilisation, predictions where there were any."""
    console = Console(file=out, width=TABLE_WIDTH, highlight=False, markup=False)
    base = {summary.policy: summary for summary in results[0].summaries}
    for result in results:
        if result is not results[0]:
            console.print()
        console.print(_title(result), style="bold", soft_wrap=True)
        console.print(_completion(result, base if result is not results[0] else {}))
        console.print()
        console.print("busy slots, by kind of pool", style="bold", soft_wrap=True)
        console.print(_utilisation(result))
        predictions = _predictions(result)
        if predictions.row_count:
            console.print()
            console.print(PREDICTIONS, style="bold", soft_wrap=True)
            console.print(predictions)


def _title(result: Result) -> str:
    first = result.summaries[0]
    title = (
        f"{result.label}: {first.jobs} jobs on {len(result.fleet)} pools, load {result.load:.2f}"
    )
    if any(summary.finished < summary.jobs for summary in result.summaries):
        # The bound is one for all jobs, and jobs that expired are missing from the means.
        return title
    return f"{title}; no dispatcher can have a mean under {_s(result.least_mean_ms)} s"


def _completion(result: Result, base: dict[str, Summary]) -> Table:
    table = _table()
    table.add_column("policy")
    heads = ("mean s", "p50", "p95", "p99", "bound", "1st token s", "p95", "wait s", "on time")
    for head in (*heads, "vs before") if base else heads:
        table.add_column(head, justify="right")
    for summary in result.summaries:
        done, token, wait = summary.completion, summary.first_token, summary.wait
        cells = [
            summary.policy,
            *_spread_cells(done, ("mean_ms", "p50_ms", "p95_ms", "p99_ms")),
            _times(summary, result.least_mean_ms, 2),
            *_spread_cells(token, ("mean_ms", "p95_ms")),
            *_spread_cells(wait, ("mean_ms",)),
            _on_time(summary),
        ]
        if base:
            before = base[summary.policy].completion
            cells.append(_times(summary, before.mean_ms if before else 0.0, 3))
        table.add_row(*cells)
    return table


def _on_time(summary: Summary) -> str:
    share = summary.on_time_share
    return "no deadlines" if share is None else f"{100 * share:.1f} %"


def _times(summary: Summary, reference_ms: float, digits: int) -> str:
    """The mean as a multiple. It means nothing where jobs that expired are missing from it."""
    if summary.completion is None or summary.finished < summary.jobs or not reference_ms:
        return "-"
    return f"x {summary.completion.mean_ms / reference_ms:.{digits}f}"


def _spread_cells(spread: Spread | None, names: Sequence[str]) -> list[str]:
    return [_s(getattr(spread, name)) if spread else "-" for name in names]


def _utilisation(result: Result) -> Table:
    table = _table()
    table.add_column("policy")
    kinds: dict[str, list[int]] = {}
    for index, pool in enumerate(result.fleet):
        kinds.setdefault(kind_of(pool.id), []).append(index)
    for kind, members in kinds.items():
        table.add_column(f"{kind} x{len(members)}", justify="right")
    for summary in result.summaries:
        shares = []
        for members in kinds.values():
            slots = sum(result.fleet[p].slots for p in members)
            busy = sum(summary.utilisation[p] * result.fleet[p].slots for p in members)
            shares.append(f"{100 * busy / slots:.1f} %")
        table.add_row(summary.policy, *shares)
    return table


def _predictions(result: Result) -> Table:
    table = _table()
    for head in ("policy", "start", "end", "ECE", "Brier skill", "base rate"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for summary in result.summaries:
        start, end, fit = summary.start_error, summary.end_error, summary.calibration
        if end is None:
            continue
        skill = "-" if fit is None or fit.brier_skill is None else f"{fit.brier_skill:.3f}"
        table.add_row(
            summary.policy,
            f"{start.median_relative:.3f} ({start.jobs})" if start else "-",
            f"{end.median_relative:.3f} ({end.jobs})",
            f"{fit.ece:.3f}" if fit else "-",
            skill,
            f"{fit.base_rate:.3f}" if fit else "-",
        )
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False)


def _s(span_ms: float) -> str:
    """Seconds with three digits that count."""
    seconds = span_ms / 1000.0
    digits = 3 if seconds < 10 else 1 if seconds < 1000 else 0  # noqa: PLR2004 - powers of ten
    return f"{seconds:.{digits}f}"
