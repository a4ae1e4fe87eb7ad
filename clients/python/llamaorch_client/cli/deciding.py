# SPDX-License-Identifier: Apache-2.0
"""A placement decision as tables that fit: what all candidates have in common is left out. LO-207.

Pure. `--json` has every number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from llamaorch_client.cli.cells import FREE_SLOTS, free_slots, gib, number
from llamaorch_client.model import Candidate, Decision, Exclusion, ExclusionReason, SnapshotFacts

GAP = 2
UNKNOWN = "-"
# What the server says that a pool offers which an operator drains.
DRAINED = "drained by an operator"
EXCLUSION_COLUMNS = ("POOL", "LACKS", "NEEDS", "HAS")
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
    """A row per shortfall, in the order of `EXCLUSION_COLUMNS`; the pool stands in its first."""
    return [
        (
            item.pool_id if index == 0 else "",
            shortfall.reason.value,
            shortfall.required or UNKNOWN,
            shortfall.offered or UNKNOWN,
        )
        for item in excluded
        for index, shortfall in enumerate(item.shortfalls)
    ]


def remedies(excluded: Sequence[Exclusion]) -> list[str]:
    """What an operator can do about it, one sentence a pool."""
    return [
        f"{item.pool_id} is drained: `llorch undrain {item.pool_id}` lets it take work again"
        for item in excluded
        for shortfall in item.shortfalls
        if shortfall.reason is ExclusionReason.NOT_READY and shortfall.offered == DRAINED
    ]
