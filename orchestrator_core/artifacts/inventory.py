"""Changes of the index, each durable: what the journal says of artifacts, and what the disk holds.

A record is written after its content, and content is removed after its last record. Where nobody
knows whether a record was written, its content stays until a restart tells.
"""

from collections.abc import Sequence

import structlog

from orchestrator_core import failpoints
from orchestrator_core.artifacts.files import ArtifactFiles
from orchestrator_core.artifacts.index import ArtifactIndex
from orchestrator_core.artifacts.threads import Threads
from orchestrator_core.store.artifact import ArtifactChange, ArtifactForgotten, ArtifactRecord
from orchestrator_core.store.port import Store, StoreError, StoreOutcomeUnknownError

WRITE_TRIES = 3
# Contents of which the journal may have a record that is not in the index. With so many, nothing is
# removed before the next start.
DOUBTFUL_MAX = 1_000

_log = structlog.get_logger("orchestratord")


class Inventory:
    """Adds to `index` and removes from it. One change at a time: its caller sees to that."""

    def __init__(
        self, index: ArtifactIndex, store: Store, files: ArtifactFiles, threads: Threads
    ) -> None:
        self._index = index
        self._store = store
        self._files = files
        self._threads = threads
        self._doubtful: set[str] = set()

    async def add(self, record: ArtifactRecord) -> None:
        """Adds an artifact whose content is published; takes that back where it was not written.

        Raises:
            StoreError: when the journal was not written, or nobody knows.
        """
        try:
            await self._write((record,))
        except StoreOutcomeUnknownError:
            # The record may be there, so the content must be, and its number is taken: until a
            # restart tells.
            self._index.next_seq = max(self._index.next_seq, record.seq + 1)
            if len(self._doubtful) <= DOUBTFUL_MAX:
                self._doubtful.add(record.sha256)
            raise
        except StoreError:
            if not self._index.uses(record.sha256):
                await self._remove_files([record.sha256])
            raise
        self._index.add(record)

    async def forget(self, records: Sequence[ArtifactRecord]) -> None:
        """Removes artifacts, and then what nobody names any more.

        Raises:
            StoreError: when the journal cannot be written; nothing was removed then.
        """
        # From here on no job can choose them as its input.
        for record in records:
            self._index.remove(record.artifact_id)
        try:
            await self._write([ArtifactForgotten(record.artifact_id) for record in records])
        except BaseException:
            for record in records:
                self._index.add(record)
            raise
        failpoints.reach("artifact.forgotten")
        over = {record.sha256 for record in records}
        await self._remove_files([each for each in sorted(over) if not self._index.uses(each)])

    async def _write(self, changes: Sequence[ArtifactChange]) -> None:
        """Writes to the journal; again after an unknown outcome, which then stands."""
        for tries_left in reversed(range(WRITE_TRIES)):
            try:
                await self._store.write_artifacts(changes)
            except StoreOutcomeUnknownError:
                if not tries_left:
                    raise
            except StoreError as error:
                if tries_left == WRITE_TRIES - 1:
                    raise
                raise StoreOutcomeUnknownError(str(error)) from error
            else:
                return

    async def _remove_files(self, digests: Sequence[str]) -> None:
        """Removes content that nobody names; what cannot be removed is swept at the next start."""
        if len(self._doubtful) > DOUBTFUL_MAX:
            return

        def remove() -> None:
            for sha256 in digests:
                if sha256 not in self._doubtful:
                    self._files.remove(sha256)

        try:
            await self._threads.run(remove)
        except OSError as error:
            _log.warning(
                "artifact_not_removed",
                error=str(error),
                human="Content of a deleted artifact is still on the disk; the next start removes"
                " it.",
            )
