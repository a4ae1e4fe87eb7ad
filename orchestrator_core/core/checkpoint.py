"""The whole state of the core as an immutable value, and back. LO-207, design §6.

Everything is stored except what is named in `LEFT_OUT`, with the reason; a field added to a table
is therefore stored without a change here. Order matters and is kept: `available`, for one, decides
by its order which pool a forecast looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.shapes import Blanks, Completions, Numbered, Shapes, hints_of, tuple_of
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import Timers

# Jobs and attempts are held by several tables at once: each is stored once and referred to. A class
# may refer to those after it and to itself.
SHARED: tuple[type, ...] = (Job, Attempt)

LEFT_OUT: Completions = {
    State: {
        "config": lambda _: CoreConfig(),  # the recording's header has it
        "effects": lambda _: [],  # the answer of one step, gone before the next
        "feasible_cache": lambda _: {},  # made again from pools and needs when asked for
    },
    # Heap order is that of (time, kind, key), all of which `_due` has; stale entries are skipped.
    Timers: {"_heap": lambda timers: cast("Timers", timers).sorted_heap()},
}

_SHAPES = Shapes(SHARED, LEFT_OUT)
_ROOT = _SHAPES.rows(State)
_TABLES = {cls: _SHAPES.rows(cls) for cls in SHARED}

# Where a job's row has its spec, whose payload nobody but the pool may see.
JOB_TABLE = SHARED.index(Job)
SPEC_COLUMN = _TABLES[Job].plain.index("spec")


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state at one instant. `root` and the rows of `tables` are nested tuples."""

    last_ms: int
    root: object
    tables: tuple[Sequence[object], ...]


def freeze(state: State, last_ms: int) -> Frozen:
    """Copies what can change; about a microsecond for each job. Does not touch the state."""
    shared = {cls: Numbered() for cls in SHARED}
    (root,) = _ROOT.freeze([state], shared)
    tables: list[Sequence[object]] = []
    for cls, rows in _TABLES.items():
        # Freezing a row may meet further objects of its own class: they are appended, and done too.
        objects, done = shared[cls].objects, 0
        frozen: list[object] = []
        while done < len(objects):
            more = list(objects.values())[done:]
            done += len(more)
            frozen.extend(rows.freeze(more, shared))
        tables.append(frozen)
    return Frozen(last_ms, root, tuple(tables))


def thaw(frozen: Frozen, config: CoreConfig) -> State:
    """Makes a state that goes on exactly as the frozen one would have."""
    blanks: Blanks = {
        cls: [object.__new__(cls) for _ in table]
        for cls, table in zip(SHARED, frozen.tables, strict=True)
    }
    for (cls, rows), table in zip(_TABLES.items(), frozen.tables, strict=True):
        for blank, row in zip(blanks[cls], table, strict=True):
            rows.fill(blank, row, blanks)
    state = cast("State", _ROOT.thaw(frozen.root, blanks))
    state.config = config
    return state


def frozen_hint() -> object:
    """Type hint of (last_ms, root, tables), for a codec that decodes by type."""
    tables = tuple_of(*(tuple_of(rows.hint, ...) for rows in _TABLES.values()))
    return tuple_of(int, _ROOT.hint, tables)


def layout() -> str:
    """Names of every stored field: two builds can share a recording when theirs are equal."""
    return "; ".join(
        f"{cls.__name__}({', '.join(name for name in rows.shapes)})"
        for cls, rows in _SHAPES.all_rows().items()
    )


def fields_of_state() -> dict[str, bool]:
    """Every field of `State`, and whether it is stored."""
    return {name: name in _ROOT.shapes for name in hints_of(State)}
