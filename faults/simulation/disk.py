"""A journal on a disk that is slow, full, or unsure, and that a crash finds amid a write."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.store.artifact import ArtifactChange
from orchestrator_core.store.memory import CommitFault, MemoryJournal, MemoryStore
from orchestrator_core.store.port import (
    Keep,
    Opened,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)

OnDurable = Callable[[Record, int], None]
"""Gets each record as it becomes durable, and the epoch of who wrote it."""


@dataclass(slots=True)
class Condition:
    """How a disk is now. Chances are those of one commit.

    `unknown` is the chance that the outcome is not known, `refused` that nothing is written.
    """

    write_ms: float = 0.0
    unknown: float = 0.0
    refused: float = 0.0
    unreadable: float = 0.0


class Disk:
    """What survives: the journal, and the batches that a crash may find under way."""

    def __init__(
        self,
        chance: random.Random,
        on_durable: OnDurable = lambda _record, _epoch: None,
        fault: Callable[[], CommitFault] | None = None,
    ) -> None:
        self.condition = Condition()
        self.fault = fault or self._drawn
        self.journal = MemoryJournal()
        self.chance = chance
        self._open: list[SimulatedStore] = []
        self._on_durable = on_durable
        self._written: set[tuple[str, str, int]] = set()
        self._latest: dict[tuple[str, str], Record] = {}

    def _drawn(self) -> CommitFault:
        """What goes wrong in one commit, in the present condition."""
        drawn, condition = self.chance.random(), self.condition
        if drawn < condition.refused:
            return CommitFault.UNAVAILABLE
        if drawn < condition.refused + condition.unknown:
            written = self.chance.random() < 0.5
            return CommitFault.UNKNOWN_WRITTEN if written else CommitFault.UNKNOWN_LOST
        return CommitFault.NONE

    def write(self, store: "SimulatedStore", batch: Sequence[Record]) -> None:
        """Makes a batch durable; tells of each record that was not there before."""
        _now(store.image.commit(batch))
        for record in batch:
            if self._new(record):
                self._on_durable(record, store.epoch)

    def _new(self, record: Record) -> bool:
        """True unless a record, or the latest of its subject, is there already."""
        key, subject = _key(record), _subject(record)
        if key is not None:
            was_there = key in self._written
            self._written.add(key)
            return not was_there
        if subject is None or self._latest.get(subject) == record:
            return False
        self._latest[subject] = record
        return True

    def opened(self, store: "SimulatedStore") -> None:
        """A store is about to be opened. What others have under way comes before it, or never."""
        for other in self._open:
            if other is not store and other.under_way and self.chance.random() < 0.5:
                self.write(other, other.under_way)
                other.done = True
        self._open.append(store)

    def crash(self, store: "SimulatedStore") -> None:
        """The writer dies: what is under way is there in whole, or not at all."""
        batch, store.under_way = store.under_way, ()
        self._open.remove(store)
        if batch and self.chance.random() < 0.5:
            self.write(store, batch)


def _now(work: Coroutine[None, None, None]) -> None:
    """Runs what only looks as if it could wait: a journal in memory."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("a journal in memory does not wait")


def _key(record: Record) -> tuple[str, str, int] | None:
    """What tells a record from others; None for what is written again and again."""
    match record:
        case AcceptRecord():
            return ("accept", record.spec.job_id, record.seq)
        case DispatchRecord():
            return ("dispatch", record.job_id, record.attempt)
        case TerminalRecord():
            return ("terminal", record.job_id, 0)
        case SessionRecord() | SessionForgotten() | PoolDrainRecord() | CatalogRecord():
            return None


def _subject(record: Record) -> tuple[str, str] | None:
    """Of what only the latest record counts, but for sessions, which nobody outside sees."""
    match record:
        case PoolDrainRecord():
            return ("pool", record.pool_id)
        case CatalogRecord():
            return ("model", record.entry.card.model_id)
        case _:
            return None


class SimulatedStore:
    """Implements `orchestrator_core.store.port.Store` on a `Disk` that outlives it.

    One that is `cut_off` does not reach the disk. `under_way` is a batch that waits for it, `done`
    says that it was written although who waits for it has not been told.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.image = MemoryStore(journal=disk.journal)
        self.epoch = 0
        self.under_way: Sequence[Record] = ()
        self.done = False
        self.cut_off = False

    async def open(self) -> Opened:
        """See `Store.open`."""
        self._disk.opened(self)
        opened = await self.image.open()
        self.epoch = opened.epoch
        return opened

    async def commit(self, batch: Sequence[Record]) -> None:
        """See `Store.commit`."""
        disk = self._disk
        self.under_way = tuple(batch)
        await self._wait()
        self.under_way = ()
        done, self.done = self.done, False
        if done:
            return
        if self.cut_off:
            raise StoreUnavailableError("the disk is not reached (injected)")
        fault = disk.fault()
        if fault is CommitFault.UNAVAILABLE:
            raise StoreUnavailableError("the disk is full (injected)")
        if fault is not CommitFault.UNKNOWN_LOST:
            disk.write(self, batch)
        if fault is not CommitFault.NONE:
            raise StoreOutcomeUnknownError("the outcome of the batch is unknown (injected)")

    async def holds(self, batch: Sequence[Record]) -> bool:
        """See `Store.holds`."""
        await self._wait()
        if self.cut_off or self._disk.chance.random() < self._disk.condition.unreadable:
            raise StoreUnavailableError("the disk cannot be read (injected)")
        return await self.image.holds(batch)

    async def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """See `Store.write_artifacts`. The simulation has no artifacts: only their contract."""
        fault = self._disk.fault()
        if fault is CommitFault.UNAVAILABLE:
            raise StoreUnavailableError("the disk is full (injected)")
        if fault is not CommitFault.UNKNOWN_LOST:
            await self.image.write_artifacts(changes)
        if fault is not CommitFault.NONE:
            raise StoreOutcomeUnknownError("the outcome of the batch is unknown (injected)")

    async def prune(self, keep: Keep) -> int:
        """See `Store.prune`."""
        return await self.image.prune(keep)

    async def close(self) -> None:
        """See `Store.close`."""
        await self.image.close()

    async def _wait(self) -> None:
        span_ms = self._disk.condition.write_ms
        await asyncio.sleep(span_ms * (0.5 + self._disk.chance.random()) / 1000)
