"""Draws docs/state_machine.md from the state tables; with --check, fails when it is stale."""

import argparse
import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from orchestrator_core.core.states import (  # noqa: E402 - needs the root on the path
    ATTEMPT_TABLE,
    JOB_TABLE,
    AttemptState,
    AttemptTrigger,
    JobState,
    JobTrigger,
)

S = TypeVar("S", bound=enum.Enum)
T = TypeVar("T", bound=enum.Enum)

DOCUMENT = ROOT / "docs" / "state_machine.md"

HEAD = """\
# State machine

Drawn from `orchestrator_core/core/states.py` by `ci/draw_state_machine.py`; do not edit. A
transition that is not in a table raises `IllegalTransitionError`: it would be a bug in the core.
"""
JOBS = """\
A job waits in QUEUED, is bound to a pool in DISPATCHED, and is RUNNING once the engine took it up.
It returns to QUEUED only on a retry, at its old place. Every live state may end, and the first
terminal state wins: nothing follows it.
"""
ATTEMPTS = """\
An attempt is one try of a job on one incarnation of a pool. The slot belongs to it until ENDED,
also while it is CANCELLING and its job is over already.
"""


def diagram(table: Mapping[S, Mapping[T, S]]) -> list[str]:
    """Returns a table as a mermaid state diagram, one arrow between two states."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(table)).name}"]
    for state, row in table.items():
        arrows: dict[str, list[str]] = {}
        for trigger, target in row.items():
            arrows.setdefault(target.name, []).append(trigger.name)
        lines += [f"    {state.name} --> {to}: {', '.join(by)}" for to, by in arrows.items()]
        if not row:
            lines.append(f"    {state.name} --> [*]")
    return [*lines, "```"]


def transitions(table: Mapping[S, Mapping[T, S]], triggers: type[T]) -> list[str]:
    """Returns a table as Markdown, one row per state and one column per trigger."""
    lines = [
        "| | " + " | ".join(trigger.name for trigger in triggers) + " |",
        "|" + "---|" * (len(triggers) + 1),
    ]
    for state, row in table.items():
        cells = [row[trigger].name if trigger in row else "" for trigger in triggers]
        lines.append(f"| **{state.name}** | " + " | ".join(cells) + " |")
    return lines


def causes(triggers: type[enum.Enum]) -> list[str]:
    """Returns what each trigger stands for."""
    return [f"- {trigger.name}: {trigger.value}" for trigger in triggers]


def document() -> str:
    """Returns the whole page."""
    assert next(iter(JOB_TABLE)) is JobState.QUEUED
    assert next(iter(ATTEMPT_TABLE)) is AttemptState.SENT
    blocks = [
        HEAD.splitlines(),
        ["## Job", "", *JOBS.splitlines()],
        diagram(JOB_TABLE),
        transitions(JOB_TABLE, JobTrigger),
        causes(JobTrigger),
        ["## Attempt", "", *ATTEMPTS.splitlines()],
        diagram(ATTEMPT_TABLE),
        transitions(ATTEMPT_TABLE, AttemptTrigger),
        causes(AttemptTrigger),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main() -> None:
    """Writes the page, or compares it with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when stale")
    arguments = parser.parse_args()
    drawn = document()
    if not arguments.check:
        DOCUMENT.write_text(drawn, encoding="utf-8")
    elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != drawn:
        sys.exit(f"{DOCUMENT.relative_to(ROOT)} is stale; run {Path(__file__).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
