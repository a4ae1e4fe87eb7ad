"""A journal whose writes are timed. LO-305."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from orchestrator_core.core.records import Record
from orchestrator_core.store.artifact import ArtifactChange
from orchestrator_core.store.port import (
    Keep,
    Opened,
    Store,
    StoreOutcomeUnknownError,
)

_MS_PER_S: Final = 1_000.0
OnCommit = Callable[[str, float, int], None]
"""Gets the outcome (written, failed or unknown), milliseconds, and the number of records."""


class MeasuredStore:
    """Implements `Store` with another one and tells `on_commit` of each commit."""

    def __init__(
        self, store: Store, on_commit: OnCommit, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._on_commit = on_commit
        self._clock_s = clock_s

    async def open(self) -> Opened:
        """See `Store.open`."""
        return await self._store.open()

    async def commit(self, batch: Sequence[Record]) -> None:
        """See `Store.commit`."""
        began_s, outcome = self._clock_s(), "failed"
        try:
            await self._store.commit(batch)
            outcome = "written"
        except StoreOutcomeUnknownError:
            outcome = "unknown"
            raise
        finally:
            took_ms = (self._clock_s() - began_s) * _MS_PER_S
            self._on_commit(outcome, took_ms, len(batch))

    async def holds(self, batch: Sequence[Record]) -> bool:
        """See `Store.holds`."""
        return await self._store.holds(batch)

    async def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """See `Store.write_artifacts`. Not timed: no job waits for it."""
        await self._store.write_artifacts(changes)

    async def prune(self, keep: Keep) -> int:
        """See `Store.prune`."""
        return await self._store.prune(keep)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()
