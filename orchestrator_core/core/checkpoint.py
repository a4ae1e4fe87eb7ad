"""The whole state of the core as an immutable value, and back. LO-207, design §6.

Everything is stored except what is named in `LEFT_OUT`, with the reason; a field added to a table
is therefore stored without a change here. Order is kept too, although none should matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from orchestrator_core.core.catalog import Catalog
from orchestrator_core.core.config import CoreConfig, ThrottleConfig
from orchestrator_core.core.freezing import Completions, Freezers, hints_of, tuple_of
from orchestrator_core.core.job import Job
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.state import State
from orchestrator_core.core.throttle import Throttle
from orchestrator_core.core.timers import Timers

LEFT_OUT: Completions = {
    State: {
        "config": lambda _: CoreConfig(),  # the recording's header has it
        "stepping": lambda _: False,  # a state is frozen between steps
        "effects": lambda _: [],  # the answer of one step, gone before the next
        "feasible_cache": lambda _: {},  # made again from pools and needs when asked for
        "on_placement": lambda _: None,  # set by whoever wants to know, decides nothing
    },
    Catalog: {"resolved": lambda _: {}},  # made again from entries and needs when asked for
    Throttle: {"config": lambda _: ThrottleConfig()},
    # Why a pool is not open and what memory it has left, made again from it when asked for.
    Pool: {
        "exclusion": lambda _: None,
        "room_bytes": lambda _: None,
        "room_counted": lambda _: False,
    },
    # Heap order is that of (time, kind, key), all of which `_due` has; stale entries are skipped.
    Timers: {"_heap": lambda timers: cast("Timers", timers).sorted_heap()},
}

# With 100,000 requests most of a checkpoint. What moves, as in `served`, must not be here.
UNMOVED = ("State.remembered", "State.ended", "State.ended_unrun")

_FREEZERS = Freezers(State, LEFT_OUT, UNMOVED)

# Where a job's row has its spec, whose payload nobody but the pool may see.
JOBS_AT = list(_FREEZERS.tables).index(Job)
SPEC_COLUMN = _FREEZERS.tables[Job].plain.index("spec")


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state at one instant: rows of nested tuples, by class."""

    last_ms: int
    tables: tuple[Sequence[object], ...]


def freeze(state: State, last_ms: int) -> Frozen:
    """Copies what can change; about a microsecond for each job. Does not touch the state."""
    return Frozen(last_ms, _FREEZERS.freeze(state))


def thaw(frozen: Frozen, config: CoreConfig) -> State:
    """Makes a state that goes on exactly as the frozen one would have."""
    state = cast("State", _FREEZERS.thaw(frozen.tables))
    state.config, state.throttle.config = config, config.throttle
    return state


def frozen_hint() -> object:
    """Type hint of (last_ms, tables), for a codec that decodes by type."""
    return tuple_of(int, _FREEZERS.hint)


def layout() -> str:
    """Names of every stored field: two builds can share a recording when theirs are equal."""
    return "; ".join(
        f"{cls.__name__}({', '.join(rows.freezers)})" for cls, rows in _FREEZERS.tables.items()
    )


def fields_of_state() -> dict[str, bool]:
    """Every field of `State`, and whether it is stored."""
    return {name: name in _FREEZERS.tables[State].freezers for name in hints_of(State)}
