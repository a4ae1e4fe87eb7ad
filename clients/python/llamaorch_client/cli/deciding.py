# SPDX-License-Identifier: Apache-2.0
"""A placement decision as tables that fit: what all candidates have in common is left out. LO-207.

Pure. `--json` has every number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.cells import cell_len

from llamaorch_client.cli.cells import FREE_SLOTS, free_slots, gib, named, number
from llamaorch_client.model import (
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Explanation,
    Shortfall,
    SnapshotFacts,
)

GAP = 2
UNKNOWN = "-"
# What the server says that a pool offers which an operator drains.
DRAINED = "drained by an operator"
EXCLUSION_COLUMNS = ("POOL", "LACKS", "NEEDS", "HAS")
GROUPS_SHOWN = 24
_BYTES = frozenset(
    {
        ExclusionReason.VRAM_TOTAL,
        ExclusionReason.KV_TOTAL,
        ExclusionReason.KV_ROOM,
        ExclusionReason.DEVICE_SHARE,
    }
)
_INSTANT = re.compile(r"\b\d{13}\b")
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column. It goes where all its cells are `silent`, and where there is no room for it.

    The highest `drop` goes first; 0 stays in any case.
    """

    title: str
    cell: Callable[[Candidate], str]
    drop: int = 0
    silent: frozenset[str] = frozenset()


def _ms(span_ms: int | None) -> str:
    return UNKNOWN if span_ms is None else f"{span_ms} ms"


def slots(item: Candidate) -> str:
    """Free slots by the server's account, of those that the pool had reported."""
    if item.snapshot is None:
        return number(item.slots_free)
    return free_slots(item.slots_free, item.snapshot.slots_total)


def _fact(show: Callable[[SnapshotFacts], str]) -> Callable[[Candidate], str]:
    return lambda item: UNKNOWN if item.snapshot is None else show(item.snapshot)


_UNKNOWN = frozenset({UNKNOWN})
COLUMNS = (
    Column("SCORE", lambda item: _ms(item.predicted_end_ms)),
    Column("FIRST TOKEN", lambda item: _ms(item.first_token_ms)),
    Column("OF IT PROMPT", lambda item: _ms(item.prompt_ms), 4, _UNKNOWN),
    Column("DECODE", lambda item: _ms(item.decode_ms)),
    Column("KV", lambda item: "warm" if item.kv_warm else "cold", 0, frozenset({"cold"})),
    Column(FREE_SLOTS, slots),
    Column("HEADROOM", lambda item: gib(item.vram_headroom_bytes), 3, _UNKNOWN | {gib(0)}),
    Column("VRAM FREE", _fact(lambda facts: gib(facts.vram_free_bytes)), 5, _UNKNOWN),
    Column("TOK/S", _fact(lambda facts: number(facts.perf_tokens_per_s)), 2, _UNKNOWN),
    Column("PREFILL/S", _fact(lambda facts: number(facts.prefill_tokens_per_s)), 6, _UNKNOWN),
    Column("CLOCKS", lambda item: f"{item.perf_scale:.0%}", 1, frozenset({"100%"})),
    Column("AGE", lambda item: _ms(item.snapshot_age_ms), 7),
    Column("VERSION", lambda item: number(item.snapshot_version), 8),
)


def candidates(decision: Decision, width: int) -> tuple[tuple[str, ...], Rows, tuple[str, ...]]:
    """Titles and rows of the columns that fit into `width`, and the titles of those that do not."""
    ids = Column(
        "  POOL", lambda item: f"{'* ' if item.pool_id == decision.pool_id else '  '}{item.pool_id}"
    )
    kept = [
        column
        for column in (ids, *COLUMNS)
        if not column.silent.issuperset({column.cell(item) for item in decision.candidates})
    ]
    gone = []
    while _width(kept, decision.candidates) > width and any(column.drop for column in kept):
        gone.append(max(kept, key=lambda column: column.drop))
        kept.remove(gone[-1])
    rows = [tuple(column.cell(item) for column in kept) for item in decision.candidates]
    return tuple(column.title for column in kept), rows, tuple(column.title for column in gone)


def _width(columns: Sequence[Column], items: Sequence[Candidate]) -> int:
    widest = [max(map(cell_len, (column.title, *map(column.cell, items)))) for column in columns]
    return sum(widest) + GAP * (len(widest) - 1)


def exclusions(excluded: Sequence[Exclusion]) -> Rows:
    """Rows in the order of `EXCLUSION_COLUMNS`, one per shortfall; the pools stand in the first.

    Pools that lack the same are told together, those that have the most in common first; beyond
    `GROUPS_SHOWN` groups the rest is counted.
    """
    groups: dict[tuple[Shortfall, ...], list[str]] = {}
    for item in excluded:
        groups.setdefault(item.shortfalls, []).append(item.pool_id)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        (named(pool_ids) if index == 0 else "", shortfall.reason.value, *_sides(shortfall))
        for shortfalls, pool_ids in ordered[:GROUPS_SHOWN]
        for index, shortfall in enumerate(shortfalls)
    ]
    rest = sum(len(pool_ids) for _, pool_ids in ordered[GROUPS_SHOWN:])
    return [*rows, (f"{rest} more", "(--json has them)", "", "")] if rest else rows


def _sides(shortfall: Shortfall) -> tuple[str, str]:
    """What is needed and offered, as people read it."""
    raw = shortfall.required, shortfall.offered
    if shortfall.reason in _BYTES:
        needs, has = map(_memory, raw)
        # What differs by less than is shown is told to the byte.
        raw = (needs, has) if needs != has else raw
    needs, has = (_INSTANT.sub(_clock, text) or UNKNOWN for text in raw)
    return needs, has


def _memory(text: str) -> str:
    number, _, rest = text.partition(" ")
    return f"{gib(int(number))} {rest}".strip() if number.isdecimal() else text


def _clock(instant: re.Match[str]) -> str:
    return f"{datetime.fromtimestamp(int(instant[0]) / 1000, UTC).astimezone():%H:%M:%S}"


def wait(explanation: Explanation) -> list[str]:
    """Why a job waits and what would help, a line each; empty where the server does not say."""
    if not explanation.wait_summary:
        return []
    lines = [explanation.wait_summary]
    if explanation.wait_remedy:
        lines.append(f"  helps: {explanation.wait_remedy}")
    for cause in explanation.wait_causes:
        lines.append(f"  {cause.sentence}")
        if cause.remedy:
            lines.append(f"    helps: {cause.remedy}")
    return lines


def remedies(excluded: Sequence[Exclusion]) -> list[str]:
    """What an operator can do about drained pools: a sentence, with the first of the commands."""
    drained = [
        item.pool_id
        for item in excluded
        if any(
            each.reason is ExclusionReason.NOT_READY and each.offered == DRAINED
            for each in item.shortfalls
        )
    ]
    if not drained:
        return []
    verb = "is" if len(drained) == 1 else "are"
    return [
        f"{named(drained)} {verb} drained: `llorch undrain {drained[0]}` lets it take work again"
    ]
