"""A GPU host whose every word is scripted: the far end of the orchestrator's streams."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import (
    dispatch_pb2,
    pool_registry_service_pb2,
    pool_registry_service_pb2_grpc,
    snapshot_pb2,
)

WAIT_S = 20.0


def snapshot(pool_id: str = "pool-a", **overrides: object) -> snapshot_pb2.PoolSnapshot:
    """A healthy two-slot pool of one host."""
    fields: dict[str, object] = {
        "pool_id": pool_id,
        "replica_id": f"{pool_id}-1",
        "host_id": "host-1",
        "version": 1,
        "engine": "mock",
        "engine_version": "1",
        "model_id": "tiny",
        "model_digest": "sha256:00",
        "state": snapshot_pb2.POOL_STATE_READY,
        "slots_total": 2,
        "slots_free": 2,
        "ctx_max": 2048,
        "vram_total_bytes": 8 << 30,
        "vram_free_bytes": 6 << 30,
        "perf_tokens_per_s": 50.0,
        "first_token_ms": 20,
        "prefill_tokens_per_s": 1000.0,
    }
    return snapshot_pb2.PoolSnapshot(**(fields | overrides))  # type: ignore[arg-type]


class ScriptedHost:
    """One open Dispatch stream, and a report stream on demand."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        host_id: str,
        boot_id: str,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._stub = pool_registry_service_pb2_grpc.PoolRegistryServiceStub(channel)
        self.host_id = host_id
        self.boot_id = boot_id
        self.frame_seq = 0
        self.applied_seq = 0
        self._metadata = metadata
        self._call = self._stub.Dispatch(metadata=metadata)
        self._text: dict[int, str] = {}
        self._pieces: dict[int, int] = {}
        self._attempt: dict[int, int] = {}

    async def register(
        self,
        *pools: snapshot_pb2.PoolSnapshot,
        held: tuple[dispatch_pb2.HeldAttempt, ...] = (),
        **fields: object,
    ) -> dispatch_pb2.Registered:
        """Registers and returns the answer."""
        base = {"host_id": self.host_id, "boot_id": self.boot_id, "pools": pools, "held": held}
        await self.send_register(**(base | fields))
        return (await self.command("registered")).registered

    async def send_register(self, **fields: object) -> None:
        """Sends one Register message as it is."""
        register = dispatch_pb2.Register(**fields)  # type: ignore[arg-type]
        await self._call.write(pool_registry_service_pb2.DispatchRequest(register=register))

    async def command(self, kind: str) -> pool_registry_service_pb2.DispatchResponse:
        """Returns the next command of a kind; another kind fails the test, idle ones do not."""
        while True:
            command = await asyncio.wait_for(self._call.read(), WAIT_S)
            assert command is not grpc.aio.EOF, f"stream ended while waiting for {kind}"
            self.applied_seq = command.dispatch_seq
            found = command.WhichOneof("command")
            if found is None or (found == "ack" and kind != "ack"):
                continue
            assert found == kind, f"expected {kind}, got {command}"
            return command

    async def start(self) -> dispatch_pb2.StartAttempt:
        """Returns the next attempt to start."""
        start = (await self.command("start")).start
        self._attempt[start.handle] = start.attempt
        return start

    async def frame(self, **parts: object) -> int:
        """Sends one frame; returns its number."""
        self.frame_seq += 1
        frame = dispatch_pb2.HostFrame(
            frame_seq=self.frame_seq,
            applied_dispatch_seq=self.applied_seq,
            **parts,  # type: ignore[arg-type]
        )
        await self._call.write(pool_registry_service_pb2.DispatchRequest(frame=frame))
        return self.frame_seq

    async def started(self, handle: int, *, kv_warmth: bool = False) -> None:
        """Tells that the engine took an attempt up."""
        await self.frame(started=[dispatch_pb2.AttemptStarted(handle=handle, kv_warmth=kv_warmth)])

    def goes_on(self, handle: int, text: str, pieces: int) -> None:
        """What is sent next follows text that an earlier attempt produced."""
        self._text[handle], self._pieces[handle] = text, pieces

    async def tokens(self, handle: int, *pieces: str) -> None:
        """Sends pieces of text that follow what was sent for the handle."""
        await self.frame(tokens=self.token_frames(handle, *pieces))

    def token_frames(self, handle: int, *pieces: str) -> dispatch_pb2.TokenFrames:
        """The next pieces of an attempt as a frame's columns."""
        before = self._text.get(handle, "").encode()
        index = self._pieces.get(handle, 0)
        text = "".join(pieces)
        batch = events_pb2.TokenBatch(
            attempt=self._attempt.get(handle, 1),
            first_index=index,
            text_offset=len(before),
            prefix_digest=digest(before),
            pieces=pieces,
        )
        self._text[handle] = before.decode() + text
        self._pieces[handle] = index + len(pieces)
        return dispatch_pb2.TokenFrames(
            handles=[handle],
            first_indexes=[index],
            piece_counts=[len(pieces)],
            text_offsets=[len(before)],
            text_bytes=[len(text.encode())],
            chunks=[batch.SerializeToString()],
        )

    async def finish(
        self, handle: int, reason: job_pb2.FinishReason.ValueType = job_pb2.FINISH_REASON_EOS
    ) -> None:
        """Ends an attempt regularly."""
        text = self._text.get(handle, "").encode()
        pieces = self._pieces.get(handle, 0)
        ended = dispatch_pb2.AttemptEnded(
            handle=handle,
            finish_reason=reason,
            usage=dispatch_pb2.AttemptUsage(tokens_in=3, tokens_out=pieces),
            next_index=pieces,
            text_bytes=len(text),
            text_digest=digest(text),
        )
        await self.frame(ended=[ended])

    async def fail(self, handle: int, kind: dispatch_pb2.AttemptErrorKind.ValueType) -> None:
        """Ends an attempt with an error."""
        ended = dispatch_pb2.AttemptEnded(
            handle=handle,
            error=dispatch_pb2.AttemptError(kind=kind, message="scripted failure"),
            text_bytes=len(self._text.get(handle, "").encode()),
        )
        await self.frame(ended=[ended])

    @asynccontextmanager
    async def reports(self) -> AsyncIterator["Reports"]:
        """Opens the snapshot stream."""
        reports = Reports(self, self._stub.ReportSnapshots(metadata=self._metadata))
        try:
            yield reports
        finally:
            await reports.close()

    async def close(self) -> None:
        """Ends the stream as a host that goes away."""
        self._call.cancel()


class Reports:
    """The snapshot stream of a scripted host."""

    def __init__(
        self,
        host: ScriptedHost,
        call: "grpc.aio.StreamStreamCall[object, object]",
    ) -> None:
        self._host = host
        self._call = call
        self._ack = 0

    async def send(
        self, *pools: snapshot_pb2.PoolSnapshot
    ) -> pool_registry_service_pb2.ReportSnapshotsResponse:
        """Reports snapshots; returns the acknowledgement."""
        request = pool_registry_service_pb2.ReportSnapshotsRequest(
            host_id=self._host.host_id,
            boot_id=self._host.boot_id,
            echoed_ack_id=self._ack,
            pools=pools,
        )
        await self._call.write(request)
        answer = await asyncio.wait_for(self._call.read(), WAIT_S)
        assert isinstance(answer, pool_registry_service_pb2.ReportSnapshotsResponse)
        self._ack = answer.ack_id
        return answer

    async def close(self) -> None:
        """Ends the stream."""
        self._call.cancel()


def digest(text: bytes) -> int:
    """Digest of all output before a place, as the protocol defines it."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
