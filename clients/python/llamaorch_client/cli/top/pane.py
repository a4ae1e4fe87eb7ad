# SPDX-License-Identifier: Apache-2.0
"""The explanation of one job as a pane: candidates with their scores, and why others were not.

LO-207.
"""

import textwrap
from collections.abc import Sequence

from rich.text import Text

from llamaorch_client.cli import deciding
from llamaorch_client.cli.cells import FREE_SLOTS, gib
from llamaorch_client.cli.failure import span_text
from llamaorch_client.cli.top import grid
from llamaorch_client.cli.top.grid import Column, Glyphs, Line, Section
from llamaorch_client.cli.top.state import Pane
from llamaorch_client.model import Decision, Exclusion, Explanation

LINE_CELLS_MIN = 20
CANDIDATES = (
    Column("POOL", 16, grow=True),
    Column("SCORE", 10, right=True),
    Column("FIRST TOKEN", 11, right=True),
    Column("DECODE", 9, right=True),
    Column("KV", 4),
    Column(FREE_SLOTS, 10, right=True),
    Column("HEADROOM", 10, drop=2, right=True),
    Column("AGE", 8, drop=1, right=True),
)
EXCLUSIONS = (
    Column("POOL", 16, grow=True),
    Column("LACKS", 14),
    Column("NEEDS", 16, grow=True),
    Column("HAS", 16, grow=True),
)


def draw(pane: Pane, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """At most `height` lines from where the pane is scrolled to, which stays within its text."""
    title = grid.rule(f"why: job {grid.clean(pane.job_id)}", width, glyphs)
    lines = _text(pane, width, glyphs)
    pane.scroll = max(0, min(pane.scroll, len(lines) - (height - 1)))
    return [title, *lines[pane.scroll :]][: max(0, height)]


def _text(pane: Pane, width: int, glyphs: Glyphs) -> list[Text]:
    if pane.problem:
        return [Text(grid.clean(pane.problem), "red")]
    if pane.explanation is None:
        return [Text("asking the server", "dim")]
    lines: list[Text] = []
    for block in _blocks(pane.explanation, width):
        lines += grid.draw(block, width, block.height, None, glyphs)
    return lines


def _blocks(explanation: Explanation, width: int) -> list[Section]:
    job = explanation.job
    told = [Line(sentence=f"{job.state.value}, model {job.model_id or '-'}")]
    if job.error is not None:
        told.append(Line(sentence=f"{job.error.reason}: {job.error.message}", style="red"))
    blocks = [Section("JOB", (Column("", 1),), told)]
    waits = _wrapped(deciding.wait(explanation), width)
    if waits:
        blocks.append(Section("WAITS BECAUSE", (Column("", 1),), waits))
    for decision in reversed(explanation.decisions):
        blocks += _decision(decision)
    if explanation.waiting_for and not waits:
        shown, total = len(explanation.waiting_for), explanation.waiting_for_total
        of = f" {shown} of {total}" if total > shown else ""
        blocks.append(_exclusions(f"WAITS BECAUSE{of}", explanation.waiting_for))
    elif not (waits or explanation.decisions):
        blocks.append(Section("NO PLACEMENT WAS DECIDED", (Column("", 1),), ()))
    trace = Line(sentence=explanation.trace_id or "-")
    return [*blocks, Section("TRACE", (Column("", 1),), (trace,))]


def _wrapped(sentences: Sequence[str], width: int) -> list[Line]:
    """Sentences over as many lines as they need: what would help stands at the end of them."""
    lines: list[Line] = []
    for sentence in sentences:
        text = grid.clean(sentence).strip()
        before = " " * (len(sentence) - len(sentence.lstrip()))
        room = max(LINE_CELLS_MIN, width - len(grid.MARGIN))
        wrapped = textwrap.wrap(text, room, initial_indent=before, subsequent_indent=f"{before}  ")
        lines += [Line(sentence=each) for each in wrapped]
    return lines


def _decision(decision: Decision) -> list[Section]:
    passed = f", after letting {decision.declined_offers} slots pass"
    sentence = (
        f"{decision.pool_id} after waiting {span_text(decision.waited_ms)}, "
        f"decided by {decision.decided_by}{passed if decision.declined_offers else ''}"
    )
    lines = [
        Line(
            (
                f"{'* ' if item.pool_id == decision.pool_id else '  '}{item.pool_id}",
                f"{item.predicted_end_ms} ms",
                f"{item.first_token_ms} ms",
                f"{item.decode_ms} ms",
                "warm" if item.kv_warm else "cold",
                deciding.slots(item),
                gib(item.vram_headroom_bytes),
                f"{item.snapshot_age_ms} ms",
            )
        )
        for item in decision.candidates
    ]
    shown = f"CANDIDATES {len(lines)} of {decision.candidates_total}"
    blocks = [
        Section(f"ATTEMPT {decision.attempt}", (Column("", 1),), (Line(sentence=sentence),)),
        Section(shown, CANDIDATES, lines, "the recording no longer holds them"),
    ]
    if decision.exclusions:
        total = decision.exclusions_total
        blocks.append(
            _exclusions(f"EXCLUDED {len(decision.exclusions)} of {total}", decision.exclusions)
        )
    return blocks


def _exclusions(title: str, exclusions: Sequence[Exclusion]) -> Section:
    lines = [Line(tuple(row)) for row in deciding.exclusions(exclusions)]
    lines += [Line(sentence=sentence, style="dim") for sentence in deciding.remedies(exclusions)]
    return Section(title, EXCLUSIONS, lines)
