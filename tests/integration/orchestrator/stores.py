"""Journals that a test holds up, or lets fail."""

import asyncio
from collections.abc import Sequence

from orchestrator_core.core.records import Record
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import StoreUnavailableError


class SlowStore(MemoryStore):
    """A journal whose disk stands still whenever the test says so; then it may break."""

    def __init__(self) -> None:
        super().__init__()
        self.moving = asyncio.Event()
        self.moving.set()
        self.waiting = asyncio.Event()
        self.broken = False

    async def commit(self, batch: Sequence[Record]) -> None:
        """Waits for the disk."""
        if not self.moving.is_set():
            self.waiting.set()
        await self.moving.wait()
        if self.broken:
            self.broken = False
            raise StoreUnavailableError("disk full")
        await super().commit(batch)


class FailingStore(MemoryStore):
    """A journal that can be told to refuse."""

    broken = False

    async def commit(self, batch: Sequence[Record]) -> None:
        """Refuses while broken."""
        if self.broken:
            raise StoreUnavailableError("scripted")
        await super().commit(batch)


class SteppedStore(MemoryStore):
    """A journal of which each commit waits for the test's word."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped = False
        self.waiting = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)

    async def commit(self, batch: Sequence[Record]) -> None:
        """Waits."""
        if self.stepped:
            self.waiting.release()
            await self.go.acquire()
        await super().commit(batch)
