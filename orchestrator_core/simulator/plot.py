"""The picture of a study: how completion times spread, how busy pools are, how predictions hold.

matplotlib is an optional dependency and is imported when a picture is wanted.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator_core.simulator.fleets import kind_of
from orchestrator_core.simulator.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
POINTS = 400


def check(path: Path) -> None:
    """Refuses a picture that could not be drawn, before any work is done. Raises ValueError."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {path}: the name must end in .png or .svg")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; install it with: pip install 'llamaorch[plot]'")


def draw(path: Path, results: Sequence[Result]) -> None:
    """Writes one row of panels per fleet. The same results give the same SVG, byte for byte."""
    import matplotlib as mpl  # noqa: PLC0415 - optional: only a plot needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional: only a plot needs it

    with mpl.rc_context({"svg.hashsalt": "llamaorch", "font.size": 8}):
        figure = Figure(figsize=(15, 4.2 * len(results)), layout="constrained")
        panels = figure.subplots(len(results), 4, squeeze=False)
        for row, result in zip(panels, results, strict=True):
            _distribution(row[0], result, "end_ms", f"{result.label}: completion")
            _distribution(row[1], result, "first_ms", "first token")
            _utilisation(row[2], result)
            _calibration(row[3], result)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=120, metadata=metadata)


def _distribution(axes: "Axes", result: Result, instant: str, title: str) -> None:
    for number, run in enumerate(result.runs):
        spans = sorted(
            (getattr(line, instant) - line.arrival_ms) / 1000.0
            for line in run.jobs
            if getattr(line, instant) is not None
        )
        if not spans:
            continue
        step = max(1, len(spans) // POINTS)
        shares = [(i + 1) / len(run.jobs) for i in range(0, len(spans), step)]
        axes.plot(spans[::step], shares, label=run.policy, linestyle=("-", "--", ":")[number % 3])
    axes.set(xscale="log", xlabel="seconds from arrival", ylabel="share of jobs", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)


def _utilisation(axes: "Axes", result: Result) -> None:
    kinds: dict[str, list[int]] = {}
    for index, pool in enumerate(result.fleet):
        kinds.setdefault(kind_of(pool.id), []).append(index)
    width = 0.8 / len(result.summaries)
    for number, summary in enumerate(result.summaries):
        busy = [
            sum(summary.utilisation[p] * result.fleet[p].slots for p in members)
            / sum(result.fleet[p].slots for p in members)
            for members in kinds.values()
        ]
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(kinds))]
        axes.bar(places, busy, width, label=summary.policy)
    axes.set_xticks(range(len(kinds)), list(kinds))
    axes.set(ylim=(0, 1), ylabel="busy share of slots", title="utilisation")


def _calibration(axes: "Axes", result: Result) -> None:
    axes.plot((0, 1), (0, 1), color="grey", linewidth=0.8)
    for summary in result.summaries:
        if summary.calibration is None:
            continue
        used = [b for b in summary.calibration.bins if b.jobs]
        label = f"{summary.policy} (ECE {summary.calibration.ece:.3f})"
        predicted, share = [b.mean_predicted for b in used], [b.on_time_share for b in used]
        axes.plot(predicted, share, marker="o", label=label)
        axes.legend(fontsize=6)
    title = "calibration (needs --deadlines)"
    axes.set(xlabel="on_time_probability", ylabel="share on time", title=title)
