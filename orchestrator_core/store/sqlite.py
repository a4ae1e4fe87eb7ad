"""The default journal: one SQLite file, one connection, one writer thread. LO-305.

Write-ahead log with synchronous FULL: a commit returns after fsync. The file is locked for as long
as it is open, so that no second orchestrator decides about the same jobs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator_core.core.records import Record
from orchestrator_core.store.artifact import ArtifactChange
from orchestrator_core.store.journal_file import Connect, JournalFile, connect
from orchestrator_core.store.port import Keep, Opened, StoreUnavailableError
from orchestrator_core.store.space import FREE_BYTES_KEPT
from orchestrator_core.store.worker import Worker

# Rows deleted in one transaction: commits wait no longer than for one such chunk.
PRUNE_CHUNK = 256

_T = TypeVar("_T")


class SqliteStore:
    """Implements `orchestrator_core.store.port.Store` on the file `path`.

    Its directory must exist. A cancelled call may still take effect. `free_bytes_kept` of the file
    may be unused; what is above that is given back to the file system.
    """

    def __init__(
        self, path: Path, connect: Connect = connect, free_bytes_kept: int = FREE_BYTES_KEPT
    ) -> None:
        self._file = JournalFile(path, connect, free_bytes_kept)
        self._thread: Worker | None = None

    async def open(self) -> Opened:
        """See `Store.open`. Raises RuntimeError when it is open already."""
        if self._thread is not None:
            raise RuntimeError(f"{self._file.path} is open already")
        # The connection lives in this one thread.
        self._thread = Worker("journal")
        try:
            return await self._run(self._file.open)
        except BaseException:
            await self.close()
            raise

    async def commit(self, batch: Sequence[Record]) -> None:
        """See `Store.commit`. Raises ValueError for records of a job that was never accepted."""
        await self._run(lambda: self._file.commit(tuple(batch)))

    async def holds(self, batch: Sequence[Record]) -> bool:
        """See `Store.holds`."""
        return await self._run(lambda: self._file.holds(tuple(batch)))

    async def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """See `Store.write_artifacts`."""
        await self._run(lambda: self._file.write_artifacts(tuple(changes)))

    async def prune(self, keep: Keep) -> int:
        """See `Store.prune`. Commits may come in between chunks of `PRUNE_CHUNK` jobs.

        Then the file gives back what it no longer needs, in chunks too.
        """
        total = 0
        while count := await self._run(lambda: self._file.prune_chunk(keep, PRUNE_CHUNK)):
            total += count
        while await self._run(self._file.compact_chunk):
            pass
        return total

    async def close(self) -> None:
        """See `Store.close`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await thread.run(self._file.close)
        # Nothing is queued behind the close, so this does not hold the loop up.
        thread.stop()

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._thread is None:
            raise StoreUnavailableError(f"{self._file.path} is closed")
        return await self._thread.run(work)
