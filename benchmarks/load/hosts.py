"""GPU hosts that are played: `python -m benchmarks.load.hosts ADDRESS --hosts 8 --pools 1`.

Each host registers, takes attempts and streams tokens on a Dispatch stream as pool-managerd does:
what is due goes at once after a pause, and else waits up to 5 ms for company. Streams run at
`--rate` tokens per second each, give or take 1 %, with random phases, until they are told to end.
A piece of text tells when it was ready to be sent: `PIECE_BYTES` bytes, a blank and microseconds.
"""

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import random
import time
from dataclasses import dataclass, field

import grpc

from benchmarks.load.control import Fields, obey
from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import (
    dispatch_pb2,
    pool_registry_service_pb2,
    pool_registry_service_pb2_grpc,
    snapshot_pb2,
)

SLOTS = 8
COALESCE_S = 0.005
REPORT_EVERY_S = 1.0
SILENT_MAX_S = 1.0
MODEL = "bench"
PIECE_BYTES = 7
# The stamp in a piece: units of 16 microseconds, modulo 2^24 of them (268 s).
STAMP_US = 16
STAMP_MASK = (1 << 24) - 1


def stamp(at_s: float) -> int:
    """What a piece says of an instant of the monotonic clock."""
    return int(at_s * 1e6) // STAMP_US & STAMP_MASK


def age_s(then: int, now_s: float) -> float:
    """Seconds from the instant in a piece until now."""
    return (stamp(now_s) - then & STAMP_MASK) * STAMP_US / 1e6


@dataclass(slots=True)
class Stream:
    """One attempt: what it has sent."""

    handle: int
    attempt: int
    job_id: str
    pool: int
    period_s: float
    pieces: int = 0
    digest: int = int.from_bytes(hashlib.sha256().digest()[:8], "big")
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def batch(self, stamps: list[int]) -> bytes:
        """The next pieces as an encoded TokenBatch."""
        pieces = [f" {it:06x}" for it in stamps]
        batch = events_pb2.TokenBatch(
            attempt=self.attempt,
            first_index=self.pieces,
            text_offset=self.pieces * PIECE_BYTES,
            prefix_digest=self.digest,
            pieces=pieces,
            token_ids=stamps,
            token_counts=[1] * len(stamps),
        )
        self.pieces += len(pieces)
        self.hash.update("".join(pieces).encode())
        self.digest = int.from_bytes(self.hash.digest()[:8], "big")
        return batch.SerializeToString()


class Host:
    """One host with its two streams."""

    def __init__(self, address: str, host_id: str, pools: int, rate: float) -> None:
        # Without this, hosts in one process share one connection, as hosts of a fleet never do.
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(address, options)
        self._stub = pool_registry_service_pb2_grpc.PoolRegistryServiceStub(self._channel)
        self._host_id = host_id
        self._pools = pools
        self._rate = rate
        self._rng = random.Random(host_id)  # noqa: S311 - phases of a benchmark
        self._call = self._stub.Dispatch()
        self._streams: dict[int, Stream] = {}
        self._due: list[tuple[float, int]] = []
        self._started: list[int] = []
        self._ended: list[tuple[int, int]] = []
        self._wake = asyncio.Event()
        self._frame_seq = 0
        self._version = 0
        self.tokens = 0
        self.ended = 0

    async def run(self, registered: asyncio.Event) -> None:
        """Serves for as long as the orchestrator does."""
        register = dispatch_pb2.Register(
            host_id=self._host_id, boot_id="boot-1", pools=self._snapshots()
        )
        await self._call.write(pool_registry_service_pb2.DispatchRequest(register=register))
        await self._call.read()
        registered.set()
        await asyncio.gather(self._read(), self._write(), self._report())

    def finish(self) -> None:
        """Ends all streams regularly."""
        for handle in list(self._streams):
            self._end(handle, job_pb2.FINISH_REASON_EOS)

    async def _read(self) -> None:
        while True:
            message = await self._call.read()
            if not isinstance(message, pool_registry_service_pb2.DispatchResponse):
                return
            match message.WhichOneof("command"):
                case "start":
                    self._start(message.start)
                case "cancel":
                    self._end(message.cancel.handle, job_pb2.FINISH_REASON_CANCELLED)
                case _:
                    pass

    def _start(self, start: dispatch_pb2.StartAttempt) -> None:
        period_s = self._rng.uniform(0.99, 1.01) / self._rate
        pool = int(start.pool_id.rpartition("-")[2])
        self._streams[start.handle] = Stream(
            start.handle, start.attempt, start.job_id, pool, period_s
        )
        first_s = time.monotonic() + self._rng.random() * period_s
        heapq.heappush(self._due, (first_s, start.handle))
        self._started.append(start.handle)
        self._wake.set()

    def _end(self, handle: int, reason: int) -> None:
        if handle in self._streams:
            self._ended.append((handle, reason))
            self._wake.set()

    async def _write(self) -> None:
        sent_s = 0.0
        while True:
            await self._until_due(sent_s + COALESCE_S)
            # A write that waits for the reader must not make what became due meanwhile look young.
            ready_s, sent_s = sent_s + COALESCE_S, time.monotonic()
            await self._call.write(self._frame(sent_s, ready_s))

    async def _until_due(self, not_before_s: float) -> None:
        """Waits until something is to be sent, but no longer than a host may be silent."""
        latest_s = time.monotonic() + SILENT_MAX_S
        while True:
            now_s = time.monotonic()
            if self._started or self._ended:
                due_s = now_s
            elif self._due:
                due_s = min(max(self._due[0][0], not_before_s), latest_s)
            else:
                due_s = latest_s
            if due_s <= now_s:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s - now_s):
                    await self._wake.wait()

    def _frame(self, now_s: float, ready_s: float) -> pool_registry_service_pb2.DispatchRequest:
        self._frame_seq += 1
        frame = dispatch_pb2.HostFrame(frame_seq=self._frame_seq)
        for handle in self._started:
            frame.started.add(handle=handle)
        self._started.clear()
        stamps: dict[int, list[int]] = {}
        while self._due and self._due[0][0] <= now_s:
            due_s, handle = self._due[0]
            stream = self._streams.get(handle)
            if stream is None:
                heapq.heappop(self._due)
                continue
            heapq.heapreplace(self._due, (due_s + stream.period_s, handle))
            stamps.setdefault(handle, []).append(stamp(max(due_s, ready_s)))
        for handle, pieces in stamps.items():
            self._add(frame.tokens, self._streams[handle], pieces)
        for handle, reason in self._ended:
            self._add_end(frame, handle, reason)
        self._ended.clear()
        return pool_registry_service_pb2.DispatchRequest(frame=frame)

    def _add(self, tokens: dispatch_pb2.TokenFrames, stream: Stream, stamps: list[int]) -> None:
        self.tokens += len(stamps)
        tokens.handles.append(stream.handle)
        tokens.first_indexes.append(stream.pieces)
        tokens.piece_counts.append(len(stamps))
        tokens.text_offsets.append(stream.pieces * PIECE_BYTES)
        tokens.text_bytes.append(len(stamps) * PIECE_BYTES)
        tokens.chunks.append(stream.batch(stamps))

    def _add_end(self, frame: dispatch_pb2.HostFrame, handle: int, reason: int) -> None:
        stream = self._streams.pop(handle, None)
        if stream is None:
            return
        self.ended += 1
        ended = frame.ended.add(
            handle=handle,
            next_index=stream.pieces,
            text_bytes=stream.pieces * PIECE_BYTES,
            text_digest=stream.digest,
        )
        ended.finish_reason = reason  # type: ignore[assignment] # an int is what the enum is
        ended.usage.tokens_in = 8
        ended.usage.tokens_out = stream.pieces

    async def _report(self) -> None:
        call = self._stub.ReportSnapshots()
        ack_id = 0
        while True:
            await call.write(
                pool_registry_service_pb2.ReportSnapshotsRequest(
                    host_id=self._host_id,
                    boot_id="boot-1",
                    echoed_ack_id=ack_id,
                    pools=self._snapshots(),
                )
            )
            answer = await call.read()
            if not isinstance(answer, pool_registry_service_pb2.ReportSnapshotsResponse):
                return
            ack_id = answer.ack_id
            await asyncio.sleep(REPORT_EVERY_S)

    def _snapshots(self) -> list[snapshot_pb2.PoolSnapshot]:
        self._version += 1
        running: dict[int, list[snapshot_pb2.RunningAttempt]] = {}
        for stream in self._streams.values():
            held = snapshot_pb2.RunningAttempt(
                job_id=stream.job_id, attempt=stream.attempt, tokens_out=stream.pieces
            )
            running.setdefault(stream.pool, []).append(held)
        return [self._snapshot(pool, running.get(pool, [])) for pool in range(self._pools)]

    def _snapshot(
        self, pool: int, running: list[snapshot_pb2.RunningAttempt]
    ) -> snapshot_pb2.PoolSnapshot:
        pool_id = f"{self._host_id}-{pool}"
        return snapshot_pb2.PoolSnapshot(
            pool_id=pool_id,
            replica_id=f"{pool_id}#1",
            host_id=self._host_id,
            version=self._version,
            emitted_frame_seq=self._frame_seq,
            engine="mock",
            engine_version="1",
            model_id=MODEL,
            model_digest="sha256:00",
            state=snapshot_pb2.POOL_STATE_READY,
            slots_total=SLOTS,
            slots_free=SLOTS - len(running),
            ctx_max=1 << 20,
            vram_total_bytes=24 << 30,
            vram_free_bytes=12 << 30,
            perf_tokens_per_s=self._rate,
            first_token_ms=20,
            prefill_tokens_per_s=1000.0,
            running=running,
        )


async def main() -> None:
    """Plays hosts until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--pools", type=int, default=1, help="pools of each host")
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args()
    hosts = [
        Host(options.address, f"host-{number}", options.pools, options.rate)
        for number in range(options.hosts)
    ]
    events = [asyncio.Event() for _ in hosts]
    tasks = [asyncio.create_task(host.run(it)) for host, it in zip(hosts, events, strict=True)]
    for event in events:
        await event.wait()

    async def totals(_: Fields) -> Fields:
        return {"tokens": sum(it.tokens for it in hosts), "ended": sum(it.ended for it in hosts)}

    async def finish(_: Fields) -> Fields:
        for host in hosts:
            host.finish()
        return await totals({})

    await obey({"totals": totals, "finish": finish})
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
