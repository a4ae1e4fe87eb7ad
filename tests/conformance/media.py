"""The journals that the conformance suite runs against, each with faults that a test plans."""

import dataclasses
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

from faults.simulation.disk import Disk, SimulatedStore
from orchestrator_core.core.events import Recovered
from orchestrator_core.store.memory import CommitFault, MemoryStore
from orchestrator_core.store.port import (
    Keep,
    Store,
)
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.commit_breaks import CommitBreaks

KINDS = ("memory", "simulated", "sqlite")
MUCH = 1 << 40


def since(ended_since_ms: int) -> Keep:
    """What ended before goes, nothing else."""
    return Keep(ended_since_ms, ended_max=10**6, ended_min=0, bytes_max=MUCH)


@dataclasses.dataclass
class Medium:
    """Where a journal's content lives: `store` opens it anew, `plan` breaks the next commits."""

    store: Callable[[], Store]
    plan: list[CommitFault]


def memory_medium() -> Medium:
    """A journal in memory."""
    plan: list[CommitFault] = []
    store = MemoryStore(lambda _number, _batch: plan.pop(0) if plan else CommitFault.NONE)
    return Medium(lambda: store, plan)


def simulated_medium() -> Medium:
    """A journal on the disk of the fault simulation."""
    plan: list[CommitFault] = []
    disk = Disk(random.Random(0), fault=lambda: plan.pop(0) if plan else CommitFault.NONE)  # noqa: S311 - seeded
    return Medium(lambda: SimulatedStore(disk), plan)


def sqlite_medium(directory: Path) -> Medium:
    """A journal in a file."""
    plan: list[CommitFault] = []
    factory = type("PlannedConnection", (CommitBreaks,), {"plan": plan})

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, factory=factory)

    return Medium(lambda: SqliteStore(directory / "journal.db", connect), plan)


def medium_of(kind: str, directory: Path) -> Medium:
    """A fresh medium."""
    if kind == "simulated":
        return simulated_medium()
    return memory_medium() if kind == "memory" else sqlite_medium(directory)


async def reopened(medium: Medium, store: Store) -> Recovered:
    """What the journal holds after a restart; it is closed again."""
    await store.close()
    again = medium.store()
    opened = await again.open()
    await again.close()
    return opened.recovered
