"""ArtifactService: plans, diffs, traces and long inputs. ORCH-3097, ORCH-3098."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import grpc
import structlog

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from orchestrator_core.artifacts import refusals
from orchestrator_core.artifacts.counts import IN, OUT
from orchestrator_core.artifacts.files import Reading
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.artifacts.upload import Upload, uploading
from orchestrator_core.auth.caller import caller, sees
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.artifact_wire import description, query, to_proto
from orchestrator_core.servicers.paging import fitting
from orchestrator_core.store.artifact import ArtifactRecord

SERVICE = "llamaorch.orchestrator.v1.ArtifactService"
CHUNK_BYTES = 256 << 10
CHUNK_BYTES_MAX = 1 << 20
ANCESTORS_MAX = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = structlog.get_logger("orchestratord")


class ArtifactServicer:
    """Shows each client its own artifacts, and admins all."""

    def __init__(self, runtime: Runtime, artifacts: Artifacts) -> None:
        self._runtime = runtime
        self._artifacts = artifacts
        self._counts = artifacts.counts
        limits = artifacts.limits
        self._idle_s = limits.idle_timeout_ms / 1000
        self._transfer_s = limits.transfer_timeout_ms / 1000

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "PutArtifact": rpc.client_stream(
                    self._counted(self.put_artifact), pb.PutArtifactRequest
                ),
                "GetArtifact": rpc.server_stream(
                    self._counted(self.get_artifact), pb.GetArtifactRequest
                ),
                "GetArtifactInfo": rpc.unary(
                    self._counted(self.get_artifact_info), pb.GetArtifactInfoRequest
                ),
                "ListArtifacts": rpc.unary(
                    self._counted(self.list_artifacts), pb.ListArtifactsRequest
                ),
                "DeleteArtifact": rpc.unary(
                    self._counted(self.delete_artifact), pb.DeleteArtifactRequest
                ),
            },
        )

    async def put_artifact(self, context: rpc.Context) -> pb.PutArtifactResponse:
        """Stores one artifact; answers once it is durable."""
        await self._runtime.sure()
        async with self._transfer():
            first = await self._next(context)
            if first is None or first.WhichOneof("part") != "header":
                raise RefusalError(refusals.invalid("header", "must be the first message"))
            described = description(first.header, rpc.identity(), self._artifacts.limits)
            async with uploading(self._artifacts, described) as upload:
                await self._receive(context, upload)
                record, existed = await upload.finish()
        _log.info(
            "artifact_put",
            artifact_id=record.artifact_id,
            sha256=record.sha256,
            kind=record.kind.value,
            size_bytes=record.size_bytes,
            existed=existed,
            human=f"{record.owner} put artifact {record.artifact_id}, {record.size_bytes} bytes"
            f"{', which was there before' if existed else ''}.",
        )
        return pb.PutArtifactResponse(artifact=to_proto(record), existed=existed)

    async def get_artifact(self, request: pb.GetArtifactRequest, context: rpc.Context) -> None:
        """Sends content, or a range of it; ends well only when all of it is right."""
        await self._runtime.sure()
        record = self._known(request.artifact_id)
        if request.offset > record.size_bytes:
            must = f"must be at most the size, {record.size_bytes}"
            raise RefusalError(refusals.invalid("offset", must))
        end = record.size_bytes
        if request.HasField("limit"):
            end = min(end, request.offset + request.limit)
        async with self._transfer(), self._artifacts.reading(record) as reading:
            await self._write(context, pb.GetArtifactResponse(header=to_proto(record)))
            await self._send(context, record, reading, request.offset, end)
            self._artifacts.verify(record, reading)

    async def get_artifact_info(
        self, request: pb.GetArtifactInfoRequest, _: rpc.Context
    ) -> pb.GetArtifactInfoResponse:
        """Returns one artifact and its ancestors."""
        await self._runtime.sure()
        record = self._known(request.artifact_id)
        if request.ancestors_max > ANCESTORS_MAX:
            raise RefusalError(refusals.invalid("ancestors_max", f"is at most {ANCESTORS_MAX}"))
        found, omitted = self._artifacts.index.ancestors(record, request.ancestors_max)
        listed = fitting(map(to_proto, found))
        return pb.GetArtifactInfoResponse(
            artifact=to_proto(record),
            ancestors=listed,
            ancestors_omitted=omitted or len(listed) < len(found),
        )

    async def list_artifacts(
        self, request: pb.ListArtifactsRequest, _: rpc.Context
    ) -> pb.ListArtifactsResponse:
        """Lists artifacts, newest first. Looks at a bounded number of them."""
        await self._runtime.sure()
        asked, before, size = query(request, None if caller().sees_all else caller().name)
        page = self._artifacts.index.page(asked, before, size)
        listed = fitting(map(to_proto, page.records))
        next_seq = page.next_seq
        if len(listed) < len(page.records):
            next_seq = page.records[len(listed) - 1].seq
        return pb.ListArtifactsResponse(
            artifacts=listed, next_page_token="" if next_seq is None else str(next_seq)
        )

    async def delete_artifact(
        self, request: pb.DeleteArtifactRequest, _: rpc.Context
    ) -> pb.DeleteArtifactResponse:
        """Forgets an artifact; answers once that is durable."""
        await self._runtime.sure()
        record = self._known(request.artifact_id)
        await self._artifacts.delete(record.artifact_id)
        _log.info(
            "artifact_deleted",
            artifact_id=record.artifact_id,
            owner=record.owner,
            human=f"Artifact {record.artifact_id} was deleted.",
        )
        return pb.DeleteArtifactResponse()

    def _counted(
        self, method: Callable[_P, Awaitable[_T]]
    ) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """The same method, of which refusals are counted."""

        async def call(*args: _P.args, **named: _P.kwargs) -> _T:
            with self._counts.refusals():
                return await method(*args, **named)

        return call

    def _known(self, artifact_id: str) -> ArtifactRecord:
        """An artifact that the caller may know of. Raises `RefusalError` NOT_FOUND."""
        record = self._artifacts.index.get(artifact_id)
        if record is None or not sees(record.owner):
            raise RefusalError(refusals.unknown(artifact_id))
        return record

    async def _receive(self, context: rpc.Context, upload: Upload) -> None:
        while (message := await self._next(context)) is not None:
            if message.WhichOneof("part") != "chunk":
                raise RefusalError(refusals.invalid("chunk", "must follow the header"))
            if not 1 <= len(message.chunk) <= CHUNK_BYTES_MAX:
                raise RefusalError(refusals.invalid("chunk", f"has 1 to {CHUNK_BYTES_MAX} bytes"))
            self._counts.moved(IN, len(message.chunk))
            await upload.write(message.chunk)

    async def _send(
        self, context: rpc.Context, record: ArtifactRecord, reading: Reading, offset: int, end: int
    ) -> None:
        """Sends the bytes from `offset` to `end`; reads all, as the digest is that of all."""
        at = 0
        while at < record.size_bytes:
            data = await self._artifacts.read(record, reading, CHUNK_BYTES)
            if not data:
                return  # Shortened meanwhile: the digest tells.
            chunk = data[max(0, offset - at) : max(0, end - at)]
            if chunk:
                await self._write(context, pb.GetArtifactResponse(chunk=chunk))
                self._counts.moved(OUT, len(chunk))
            at += len(data)

    async def _next(self, context: rpc.Context) -> pb.PutArtifactRequest | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await rpc.read(context, pb.PutArtifactRequest)
        except TimeoutError:
            raise RefusalError(self._idle("sent")) from None

    async def _write(self, context: rpc.Context, message: pb.GetArtifactResponse) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await context.write(message.SerializeToString())
        except TimeoutError:
            raise RefusalError(self._idle("read")) from None

    def _idle(self, what: str) -> Refusal:
        text = f"nothing was {what} for {self._idle_s:g} s (artifacts.idle_timeout_ms)"
        return refusals.too_late(text)

    @asynccontextmanager
    async def _transfer(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._transfer_s):
                yield
        except TimeoutError:
            text = f"it took longer than {self._transfer_s:g} s (artifacts.transfer_timeout_ms)"
            raise RefusalError(refusals.too_late(text)) from None
