"""Puts, reads, deletes and expires artifacts within stated bounds. ORCH-3097, ORCH-3098.

What is in the index is durable and has its content: content is published before its record is
written, and removed after the record is gone. What a crash leaves between the two is content that
nobody names, which the next start sweeps. Changes happen one after another, and end once they have
begun, whether or not their caller is still there. Files are touched in threads only.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog

from orchestrator_core import failpoints
from orchestrator_core.artifacts import refusals
from orchestrator_core.artifacts.counts import ArtifactCounts
from orchestrator_core.artifacts.description import Description
from orchestrator_core.artifacts.files import (
    ArtifactFiles,
    DamagedError,
    FilesFullError,
    Incoming,
    Reading,
)
from orchestrator_core.artifacts.index import ArtifactIndex
from orchestrator_core.artifacts.inventory import Inventory
from orchestrator_core.artifacts.room import Room
from orchestrator_core.artifacts.threads import Threads
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.store.artifact import ArtifactRecord
from orchestrator_core.store.port import Opened, Store, StoreError

# Artifacts that expire in one write of the journal.
EXPIRE_STEP = 64
# Cancelled transfers end within the time of one access to the disk, and so does a close: each is
# waited for so long.
CLOSE_S = 5.0

_T = TypeVar("_T")

_log = structlog.get_logger("orchestratord")


class Artifacts:
    """All artifacts of an orchestrator. Belongs to the event loop; `open` first, `close` last.

    `now_ms` is the core's clock, `in_use` gives the ids that jobs need which have not ended.
    """

    def __init__(
        self,
        limits: ArtifactsTable,
        files: ArtifactFiles,
        store: Store,
        now_ms: Callable[[], int],
        in_use: Callable[[], set[str]],
    ) -> None:
        self.limits = limits
        self.index = ArtifactIndex()
        self.room = Room(limits, self.index)
        self.files = files
        self.counts = ArtifactCounts()
        self._now_ms = now_ms
        self._in_use = in_use
        self._threads = Threads("artifacts")
        self._inventory = Inventory(self.index, store, files, self._threads)
        self._changing = asyncio.Lock()
        self._unused = asyncio.Event()
        self._unused.set()
        self._readings = 0
        self._held: Counter[str] = Counter()

    async def open(self, opened: Opened) -> None:
        """Takes the directory and the index. Raises `FilesUnusableError`."""
        for record in opened.artifacts:
            self.index.add(record)
        await self._threads.run(partial(self.files.open, opened.journal_id))
        swept = await self._threads.run(partial(self.files.sweep, self.index.digests()))
        if swept.removed:
            _log.info(
                "artifacts_swept",
                files=swept.removed,
                human=f"{swept.removed} files were removed that an interrupted upload or deletion"
                " of an artifact had left.",
            )
        if swept.missing:
            _log.error(
                "artifacts_missing",
                contents=len(swept.missing),
                directory=str(self.files.directory),
                human=f"The content of {len(swept.missing)} artifacts is gone from the disk; they"
                " are listed still, and cannot be read.",
            )

    async def close(self) -> None:
        """Waits for transfers, which must have been cancelled, then gives the directory back.

        Idempotent. With a disk that does not answer it is over within twice `CLOSE_S` all the same;
        the directory is then given back when the process ends.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._unused.wait()
        if not await self._threads.close(self.files.close, CLOSE_S):
            _log.error(
                "artifacts_not_closed",
                directory=str(self.files.directory),
                human="The disk of artifacts does not answer, so nobody waits for it any more: look"
                " at its health. What was being put then was not promised.",
            )

    # --- putting

    def admit(self, described: Description) -> None:
        """Lets an upload begin; `dismiss` ends it. Raises `RefusalError`."""
        self._check_parents(described)
        self.room.admit(described.owner)
        self._unused.clear()

    def dismiss(self, described: Description, reserved_bytes: int) -> None:
        """Ends an upload and gives its room back: what became of it counts by itself."""
        self.room.dismiss(described.owner, reserved_bytes)
        self._note_use()

    def _note_use(self) -> None:
        if not self._readings and not self.room.uploads:
            self._unused.set()

    def receive(self) -> Incoming:
        """A file for an upload. Blocks; raises `FilesFullError`, or OSError."""
        return self.files.receive()

    async def keep(
        self, described: Description, incoming: Incoming, prompt_bytes: int, reserved_bytes: int
    ) -> tuple[ArtifactRecord, bool]:
        """Makes received content an artifact, durably; True when it was one before.

        Once begun this ends by itself, and then owns `incoming` and the room that was set aside.
        Raises `RefusalError`.
        """
        work = self._keep(described, incoming, prompt_bytes, reserved_bytes)
        return await self._threads.finish(work)

    async def _keep(
        self, described: Description, incoming: Incoming, prompt_bytes: int, reserved_bytes: int
    ) -> tuple[ArtifactRecord, bool]:
        async with self._changing:
            try:
                artifact_id = described.artifact_id(incoming.sha256)
                earlier = self.index.get(artifact_id)
                self._check_parents(described)
                if earlier is None:
                    self.room.check_count()
                    if reserved_bytes < incoming.size_bytes:
                        # The one that it was to be went meanwhile, and somebody may have its room.
                        self.room.reserve(described.owner, incoming.size_bytes - reserved_bytes)
                        reserved_bytes = incoming.size_bytes
                record = self._record(described, incoming, earlier, prompt_bytes)
                await self.on_disk(partial(self.files.publish, incoming))
                failpoints.reach("artifact.published")
                try:
                    await self._inventory.add(record)
                except StoreError as error:
                    raise RefusalError(_store_refusal(error)) from error
            finally:
                # In the index it counts by itself, from this turn of the loop on.
                self.room.release(described.owner, reserved_bytes)
                await self.on_disk(incoming.discard)
        failpoints.reach("artifact.indexed")
        return record, earlier is not None

    def _record(
        self,
        described: Description,
        incoming: Incoming,
        earlier: ArtifactRecord | None,
        prompt_bytes: int,
    ) -> ArtifactRecord:
        now_ms = self._now_ms()
        expires_ms = now_ms + self.limits.retention_ms
        if earlier is not None:
            return replace(earlier, expires_ms=max(expires_ms, earlier.expires_ms))
        return ArtifactRecord(
            artifact_id=described.artifact_id(incoming.sha256),
            seq=self.index.next_seq,
            owner=described.owner,
            kind=described.kind,
            media_type=described.media_type,
            sha256=incoming.sha256,
            size_bytes=incoming.size_bytes,
            created_ms=now_ms,
            expires_ms=expires_ms,
            prompt_bytes=prompt_bytes,
            tags=described.tags,
            parent_ids=described.parent_ids,
            labels=described.labels,
            job_id=described.job_id,
            session_id=described.session_id,
        )

    def _check_parents(self, described: Description) -> None:
        for index, parent_id in enumerate(described.parent_ids):
            parent = self.index.get(parent_id)
            if parent is None or parent.owner != described.owner:
                raise RefusalError(refusals.unknown(parent_id, f"header.parent_ids[{index}]"))

    # --- reading

    @contextlib.asynccontextmanager
    async def reading(self, record: ArtifactRecord) -> AsyncIterator[Reading]:
        """The content of an artifact, while the block runs. Raises `RefusalError`."""
        if self._readings >= self.limits.downloads_max:
            most = self.limits.downloads_max
            text = f"{most} artifacts are being read already (artifacts.downloads_max)"
            raise RefusalError(refusals.busy("artifact-downloads", text))
        self._readings += 1
        self._unused.clear()
        opened: list[Reading] = []

        def begin() -> Reading:
            opened.append(self.files.read(record.sha256, record.size_bytes))
            return opened[0]

        try:
            yield await self.on_disk(begin, record)
        finally:
            try:
                for reading in opened:
                    await self._threads.finish(self._threads.run(reading.close))
            finally:
                # Also where a close fails, or its caller is cancelled once more meanwhile.
                self._readings -= 1
                self._note_use()

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Lets something end although its caller goes away."""
        return await self._threads.finish(work)

    async def read(self, record: ArtifactRecord, reading: Reading, size_bytes: int) -> bytes:
        """The next bytes of an artifact. Raises `RefusalError`."""
        return await self.on_disk(partial(reading.read, size_bytes), record)

    def verify(self, record: ArtifactRecord, reading: Reading) -> None:
        """Raises `RefusalError` unless all that was read is what was put."""
        try:
            reading.verify()
        except DamagedError as error:
            raise RefusalError(self._damaged(record, error)) from error

    async def content(self, record: ArtifactRecord, use: Callable[[bytes], _T]) -> _T:
        """What `use` makes, in a thread, of all of an artifact's content, which is right.

        It is in memory meanwhile. Raises `RefusalError`.
        """

        def work() -> _T:
            reading = self.files.read(record.sha256, record.size_bytes)
            try:
                data = reading.read(record.size_bytes)
                reading.verify()
            finally:
                reading.close()
            return use(data)

        return await self.on_disk(work, record)

    @contextmanager
    def held(self, artifact_id: str) -> Iterator[None]:
        """Keeps an artifact while the block runs, as a job does that has not ended."""
        self._held[artifact_id] += 1
        try:
            yield
        finally:
            self._held[artifact_id] -= 1
            self._held = +self._held

    # --- deleting

    async def delete(self, artifact_id: str) -> None:
        """Forgets an artifact; returns once that is durable. Raises `RefusalError`."""
        await self._threads.finish(self._delete(artifact_id))

    async def _delete(self, artifact_id: str) -> None:
        async with self._changing:
            record = self.index.get(artifact_id)
            if record is None:
                raise RefusalError(refusals.unknown(artifact_id))
            if artifact_id in self._pinned():
                raise RefusalError(refusals.in_use(artifact_id))
            try:
                await self._inventory.forget([record])
            except StoreError as error:
                raise RefusalError(_store_refusal(error)) from error

    async def expire(self) -> int:
        """Forgets what is kept no longer, step by step; returns how many.

        Raises:
            StoreError: when the journal cannot be written; what was not forgotten is kept.
        """
        total = 0
        while count := await self._threads.finish(self._expire_step()):
            total += count
        return total

    async def _expire_step(self) -> int:
        async with self._changing:
            due = self.index.due(self._now_ms(), EXPIRE_STEP, self._pinned())
            if due:
                await self._inventory.forget(due)
        for record in due:
            _log.info(
                "artifact_expired",
                artifact_id=record.artifact_id,
                owner=record.owner,
                kind=record.kind.value,
                size_bytes=record.size_bytes,
                human=f"Artifact {record.artifact_id} was kept for its time, and is deleted.",
            )
        return len(due)

    def _pinned(self) -> set[str]:
        return self._in_use() | self._held.keys()

    # --- the disk

    async def on_disk(self, work: Callable[[], _T], record: ArtifactRecord | None = None) -> _T:
        """Does in a thread what an upload or a reader needs. Raises `RefusalError`."""
        try:
            return await self._threads.run(work)
        except DamagedError as error:
            assert record is not None, "only what is read can be damaged"
            raise RefusalError(self._damaged(record, error)) from error
        except FilesFullError as error:
            _log.error("artifacts_full", error=str(error), human="No artifact can be put.")
            raise RefusalError(refusals.store_unavailable(str(error))) from error
        except OSError as error:
            _log.error(
                "artifacts_failed",
                error=str(error),
                human="The disk of artifacts cannot be used: look at its health.",
            )
            text = f"the disk of artifacts cannot be used ({error.strerror}); see the server's log"
            raise RefusalError(refusals.store_unavailable(text)) from error

    def _damaged(self, record: ArtifactRecord, error: DamagedError) -> Refusal:
        self.counts.damaged += 1
        _log.error(
            "artifact_damaged",
            artifact_id=record.artifact_id,
            sha256=record.sha256,
            why=str(error),
            human=f"Artifact {record.artifact_id} cannot be read: {error}. Put it again, or restore"
            " its file from a copy.",
        )
        return refusals.damaged(record.artifact_id, str(error))


def _store_refusal(error: StoreError) -> Refusal:
    _log.error(
        "artifact_index_failed",
        error=str(error),
        human="The journal cannot be written; no artifact is put or deleted until it can.",
    )
    return refusals.store_unavailable(
        "the journal cannot be written, so nothing can be promised; see the server's log"
    )
