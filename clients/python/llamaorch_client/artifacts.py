# SPDX-License-Identifier: Apache-2.0
"""Putting and getting artifacts: files of any size, checked at both ends (ORCH-3097).

The files of the caller are read and written in threads; the event loop never waits for a disk.
"""

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import grpc

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from llamaorch_client import wire_artifacts
from llamaorch_client.artifact import (
    Artifact,
    ArtifactAbout,
    ArtifactFilter,
    Lineage,
    Progress,
    Source,
)
from llamaorch_client.ending import Ending
from llamaorch_client.errors import (
    ErrorDetail,
    IntegrityError,
    LlamaOrchError,
    UnavailableError,
    from_rpc_error,
    lost_while_writing,
)
from llamaorch_client.metadata import call_metadata, checked_correlation_id
from llamaorch_client.pages import PAGE_SIZE, Pages
from llamaorch_client.retry import RetryRow
from llamaorch_client.transport import Transport

CHUNK_BYTES = 256 * 1024
# How long a put that broke off waits for a refusal of its header when it is made again.
REFUSAL_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of content before it is sent; a source that is read once tells nothing.

    `broke_off`: the call ended once while it was written, and why was lost.
    """

    sha256: str = ""
    size_bytes: int | None = None
    broke_off: bool = False


class Artifacts:
    """The artifacts of one client: `AsyncClient.artifacts`.

    Every method takes `correlation_id` and raises `LlamaOrchError`, as those of the client do.
    """

    def __init__(self, open_transport: Callable[[], Transport]) -> None:
        self._open = open_transport

    async def put(
        self,
        source: Source,
        about: ArtifactAbout | None = None,
        *,
        progress: Progress | None = None,
        correlation_id: str | None = None,
    ) -> tuple[Artifact, bool]:
        """Stores content and returns once it is durable; True when it was there before.

        A file or bytes are read twice, first for their digest, and are put again where the
        connection breaks. What can be read only once, such as a pipe, is put once.

        Raises:
            IntegrityError: the server stored something else than was read.
            OSError: the source cannot be read.
        """
        transport = self._open()
        about = about if about is not None else ArtifactAbout()
        sent_id = checked_correlation_id(correlation_id)
        if not isinstance(source, Path | bytes):
            return await self._put(transport, source, about, _Known(), (progress, sent_id))
        if isinstance(source, Path) and not await asyncio.to_thread(_can_be_read_twice, source):
            with await asyncio.to_thread(_opened, source) as once:
                return await self._put(transport, once, about, _Known(), (progress, sent_id))
        known = await asyncio.to_thread(_look, source)
        row = RetryRow(transport.options.retry, transport.options.timing)
        while True:
            opened = await asyncio.to_thread(_opened, source)
            try:
                return await self._put(transport, opened, about, known, (progress, sent_id))
            except LlamaOrchError as error:
                known = replace(known, broke_off=isinstance(error, UnavailableError))
                delay_ms = row.next_delay_ms(error)
                error.attempts = row.failures
                if delay_ms is None:
                    raise
            finally:
                opened.close()
            await transport.options.timing.sleep_ms(delay_ms)

    async def get(
        self,
        artifact_id: str,
        target: Path,
        *,
        progress: Progress | None = None,
        correlation_id: str | None = None,
    ) -> Artifact:
        """Writes content to a file, which appears only once all of it is there and right.

        Goes on at the byte where a connection broke.

        Raises:
            DataLossError: the server's copy is damaged. IntegrityError: other bytes came.
            OSError: the file cannot be written.
        """
        file, part = await asyncio.to_thread(_part_of, target)
        try:
            with file:
                artifact = await self._read(artifact_id, file, progress, correlation_id)
                await asyncio.to_thread(_synced, file)
            await asyncio.to_thread(os.replace, part, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(os.unlink, part)
            raise
        return artifact

    async def read(
        self, artifact_id: str, *, correlation_id: str | None = None
    ) -> tuple[Artifact, bytes]:
        """Returns an artifact and its content, all of it in memory."""
        buffer = io.BytesIO()
        artifact = await self._read(artifact_id, buffer, None, correlation_id)
        return artifact, buffer.getvalue()

    async def info(
        self, artifact_id: str, *, ancestors: int = 0, correlation_id: str | None = None
    ) -> Lineage:
        """Returns what is known of an artifact, and up to so many ancestors (ORCH-3098)."""
        transport = self._open()
        request = pb.GetArtifactInfoRequest(artifact_id=artifact_id, ancestors_max=ancestors)
        answer = await transport.unary(
            transport.artifacts.GetArtifactInfo, request, correlation_id=correlation_id
        )
        found = tuple(wire_artifacts.artifact(each) for each in answer.message.ancestors)
        told = wire_artifacts.artifact(answer.message.artifact)
        return Lineage(told, found, answer.message.ancestors_omitted)

    async def list(
        self,
        where: ArtifactFilter | None = None,
        *,
        limit: int | None = None,
        correlation_id: str | None = None,
    ) -> AsyncGenerator[Artifact, None]:
        """Yields artifacts, newest first, page by page as they are asked for."""
        transport, pages = self._open(), Pages("artifacts")
        where = where if where is not None else ArtifactFilter()
        left = limit if limit is not None else sys.maxsize
        while pages.more:
            request = wire_artifacts.list_request(where, pages.token, min(PAGE_SIZE, left))
            answer = await transport.unary(
                transport.artifacts.ListArtifacts, request, correlation_id=correlation_id
            )
            page = answer.message
            for message in page.artifacts[:left]:
                yield wire_artifacts.artifact(message)
            left -= len(page.artifacts)
            if left <= 0:
                return
            pages.turn(page.next_page_token)

    async def delete(self, artifact_id: str, *, correlation_id: str | None = None) -> None:
        """Forgets an artifact.

        Raises:
            InUseError: a job that has not ended has it as its input.
        """
        transport = self._open()
        request = pb.DeleteArtifactRequest(artifact_id=artifact_id)
        await transport.unary(
            transport.artifacts.DeleteArtifact, request, correlation_id=correlation_id
        )

    async def _put(
        self,
        transport: Transport,
        source: BinaryIO,
        about: ArtifactAbout,
        known: _Known,
        told: tuple[Progress | None, str],
    ) -> tuple[Artifact, bool]:
        progress, sent_id = told
        digest, done = hashlib.sha256(), 0
        unreadable: list[Exception] = []

        async def parts() -> AsyncIterator[pb.PutArtifactRequest]:
            nonlocal done
            first = wire_artifacts.header(about, known.sha256, known.size_bytes)
            yield pb.PutArtifactRequest(header=first)
            if known.broke_off and await _ends(call, REFUSAL_WAIT_S):
                return
            try:
                while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
                    digest.update(chunk)
                    done += len(chunk)
                    yield pb.PutArtifactRequest(chunk=chunk)
                    if progress is not None:
                        progress(done, known.size_bytes)
            except Exception as error:
                unreadable.append(error)
                raise

        metadata = call_metadata(sent_id, transport.options.token, None)
        with transport.in_use():
            call = transport.artifacts.PutArtifact(parts(), metadata=metadata)
        ending = Ending(call)
        try:
            with transport.in_use():
                answer: pb.PutArtifactResponse = await call
        except grpc.aio.AioRpcError as error:
            broken = await ending.error(error)
            raise _not_put(broken, done, sent_id, transport.target) from error
        except asyncio.CancelledError:
            # gRPC cancels a call whose requests cannot be made, and keeps the reason to itself.
            if unreadable:
                raise unreadable[0] from None
            raise
        finally:
            call.cancel()
        stored = wire_artifacts.artifact(answer.artifact)
        if stored.sha256 != digest.hexdigest():
            raise IntegrityError("the server stored other content than was sent")
        return stored, answer.existed

    async def _read(
        self,
        artifact_id: str,
        target: BinaryIO,
        progress: Progress | None,
        correlation_id: str | None,
    ) -> Artifact:
        """Writes all content to `target`, over any break, and checks it."""
        transport = self._open()
        reader = _Reader(transport, target, progress, checked_correlation_id(correlation_id))
        row = RetryRow(transport.options.retry, transport.options.timing)
        while True:
            before = reader.done
            try:
                return await reader.read(artifact_id)
            except LlamaOrchError as error:
                if reader.done > before:
                    row.reset()
                delay_ms = row.next_delay_ms(error)
                error.attempts = row.failures
                if delay_ms is None:
                    raise
            await transport.options.timing.sleep_ms(delay_ms)


class _Reader:
    """What has been read of one artifact; `read` goes on from there."""

    def __init__(
        self, transport: Transport, target: BinaryIO, progress: Progress | None, sent_id: str
    ) -> None:
        self.done = 0
        self._transport = transport
        self._target = target
        self._progress = progress
        self._sent_id = sent_id
        self._digest = hashlib.sha256()

    async def read(self, artifact_id: str) -> Artifact:
        """Reads to the end and returns the artifact, whose content is right then."""
        artifact: Artifact | None = None
        request = pb.GetArtifactRequest(artifact_id=artifact_id, offset=self.done)
        metadata = call_metadata(self._sent_id, self._transport.options.token, None)
        with self._transport.in_use():
            call = self._transport.artifacts.GetArtifact(request, metadata=metadata)
        try:
            with self._transport.in_use():
                async for message in call:
                    if message.WhichOneof("part") == "header":
                        artifact = wire_artifacts.artifact(message.header)
                    else:
                        await self._keep(message.chunk, artifact)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._sent_id, self._transport.target) from error
        finally:
            call.cancel()
        if artifact is None or self._digest.hexdigest() != artifact.sha256:
            raise IntegrityError("the server sent other content than the artifact's")
        return artifact

    async def _keep(self, chunk: bytes, artifact: Artifact | None) -> None:
        self._digest.update(chunk)
        await asyncio.to_thread(self._target.write, chunk)
        self.done += len(chunk)
        if self._progress is not None:
            self._progress(self.done, artifact.size_bytes if artifact is not None else None)


async def _ends(call: grpc.aio.RpcContext, within_s: float) -> bool:
    """True when a call ends soon."""
    ended = asyncio.Event()
    call.add_done_callback(lambda _: ended.set())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await ended.wait()
    return ended.is_set()


def _not_put(
    error: grpc.aio.AioRpcError, done_bytes: int, correlation_id: str, target: str
) -> LlamaOrchError:
    if not lost_while_writing(error):
        return from_rpc_error(error, correlation_id, target)
    text = (
        f"the call ended after {done_bytes} bytes had been given to it, and why was lost: the "
        "content may be larger than artifacts.artifact_bytes_max or a quota there"
    )
    detail = ErrorDetail(text, "UNAVAILABLE", "UNAVAILABLE", correlation_id=correlation_id)
    return UnavailableError(detail)


def _look(source: Path | bytes) -> _Known:
    with _opened(source) as file:
        digest = hashlib.sha256()
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
        return _Known(digest.hexdigest(), file.tell())


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _can_be_read_twice(source: Path) -> bool:
    return stat.S_ISREG(source.stat().st_mode)


def _part_of(target: Path) -> tuple[BinaryIO, str]:
    """A file beside the target, which it is going to be, with the rights of any new file."""
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is no regular file, and would be replaced", str(target))
    part = target.parent / f".{target.name[:64]}.{secrets.token_hex(8)}"
    try:
        return part.open("xb"), str(part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
