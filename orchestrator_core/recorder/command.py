"""`llorch replay`: re-runs a recording and fails at the first difference. LO-207."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import (
    DivergenceError,
    Report,
    StateDivergenceError,
    replay,
)
from orchestrator_core.recorder.segment import RecordingError

summary = "re-run a flight recording; fails at the first decision or state that differs"

EXIT_DIFFERS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("path", type=Path, metavar="FILE", help="a segment, or a directory of them")


def run(arguments: argparse.Namespace) -> int:
    """Carries the command out. Raises ValueError and OSError with what to change."""
    paths = recordings(arguments.path)
    if not paths:
        raise ValueError(f"{arguments.path}: no recording in this directory")
    began_s = time.perf_counter()
    try:
        report = replay(paths)
    except RecordingError as error:
        raise ValueError(str(error)) from error
    except (DivergenceError, StateDivergenceError) as error:
        if arguments.json:
            sys.stdout.write(json.dumps({"equal": False, "difference": str(error)}) + "\n")
        else:
            sys.stdout.write(f"The replay differs.\n{error}\n")
        return EXIT_DIFFERS
    took_s = time.perf_counter() - began_s
    if not report.segments:
        raise ValueError(
            f"{arguments.path}: nothing to replay, every file was cut before its first step"
        )
    if arguments.json:
        record = {"equal": True, **asdict(report), "took_s": took_s}
        sys.stdout.write(json.dumps(record) + "\n")
    else:
        sys.stdout.write(_told(report, took_s))
    return 0


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number} {thing}{'' if number == 1 else plural}"


def _told(report: Report, took_s: float) -> str:
    span_s = ((report.last_ms or 0) - (report.first_ms or 0)) / 1000
    per_s = report.steps / max(took_s, 1e-9)
    equal = (
        f"{_count(report.steps, 'step')} with {_count(report.decisions, 'decision')} and "
        f"{_count(report.hashes, 'state hash', 'es')}"
    )
    runs = f"{_count(report.segments, 'segment')} of {_count(report.runs, 'run')}"
    lines = [
        f"All equal: {equal} in {runs}.",
        f"{span_s:.1f} s recorded, replayed in {took_s:.2f} s ({per_s:.0f} steps/s).",
    ]
    if report.gaps:
        lines.append(f"{_count(report.gaps, 'gap')}: steps between two segments are missing.")
    if report.unfinished:
        lines.append(f"Cut before their first step: {', '.join(report.unfinished)}.")
    if report.raised:
        lines.append(f"The last step raised when recorded, and again: {report.raised}")
    return "\n".join(lines) + "\n"
