"""The peer of the relay: grpc.aio alone, `python -m benchmarks.load.bare`.

It serves as much of both protocols as hosts and clients of the benchmark need, with messages of the
same sizes, and has no logic: no journal, no checks, no digests, nothing kept. A job goes to the
next slot in turn; what comes of it is put into the queue of its reader.
"""

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.load.control import obey
from benchmarks.load.hosts import SLOTS
from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb

Context = Any


class Reader:
    """What waits to be written for one job or for one Exchange."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, bytes]] = []
        self.ended: list[tuple[int, dispatch_pb2.AttemptEnded]] = []
        self.results: list[pb.ExchangeResult] = []
        self.changed = asyncio.Event()

    async def take(self) -> pb.ExchangeResponse:
        """All that came since the last time, as columns."""
        await self.changed.wait()
        self.changed.clear()
        response = pb.ExchangeResponse(results=self.results)
        response.tokens.handles.extend(handle for handle, _ in self.waiting)
        response.tokens.chunks.extend(chunk for _, chunk in self.waiting)
        for handle, ended in self.ended:
            response.events.append(
                pb.ExchangeJobEvent(handle=handle, event=events_pb2.JobEvent(end=_end(ended)))
            )
        self.waiting, self.ended, self.results = [], [], []
        return response


class BareRelay:
    """Both services. Handles are job numbers."""

    def __init__(self) -> None:
        self._slots: list[tuple[asyncio.Queue[registry_pb.DispatchResponse], str]] = []
        self._turn = itertools.count()
        self._readers: dict[int, Reader] = {}

    async def dispatch(self, _: object, context: Context) -> None:
        """One host."""
        first = registry_pb.DispatchRequest.FromString(await context.read())
        commands: asyncio.Queue[registry_pb.DispatchResponse] = asyncio.Queue()
        registered = registry_pb.DispatchResponse(
            dispatch_seq=1, registered=dispatch_pb2.Registered()
        )
        commands.put_nowait(registered)
        for pool in first.register.pools:
            self._slots += [(commands, pool.pool_id)] * SLOTS
        write = asyncio.create_task(_write(commands, context))
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                self._frame(registry_pb.DispatchRequest.FromString(data).frame)
        finally:
            write.cancel()

    def _frame(self, frame: dispatch_pb2.HostFrame) -> None:
        for handle, chunk in zip(frame.tokens.handles, frame.tokens.chunks, strict=True):
            if (reader := self._readers.get(handle)) is not None:
                reader.waiting.append((handle, chunk))
                reader.changed.set()
        for ended in frame.ended:
            if (reader := self._readers.get(ended.handle)) is not None:
                reader.ended.append((ended.handle, ended))
                reader.changed.set()

    async def reports(self, _: object, context: Context) -> None:
        """Snapshots: acknowledged unread."""
        while await context.read() is not grpc.aio.EOF:
            await context.write(registry_pb.ReportSnapshotsResponse().SerializeToString())

    async def enqueue(self, _: bytes, __: Context) -> bytes:
        """Starts a job in the next slot."""
        handle = self._start(Reader())
        return pb.EnqueueResponse(job_id=str(handle)).SerializeToString()

    def _start(self, reader: Reader) -> int:
        handle = next(self._turn)
        self._readers[handle] = reader
        commands, pool_id = self._slots[handle % len(self._slots)]
        start = dispatch_pb2.StartAttempt(handle=handle, attempt=1, pool_id=pool_id)
        # Numbers of a stream need only grow.
        commands.put_nowait(registry_pb.DispatchResponse(dispatch_seq=handle + 2, start=start))
        return handle

    async def stream_tokens(self, data: bytes, _: Context) -> AsyncIterator[bytes]:
        """One job."""
        reader = self._readers[int(pb.StreamTokensRequest.FromString(data).job_id)]
        while True:
            await reader.changed.wait()
            reader.changed.clear()
            chunks, reader.waiting = reader.waiting, []
            # A message around one field of bytes, as the relay writes it.
            if chunks:
                yield b"".join(_tokens_entry(chunk) for _, chunk in chunks)
            if reader.ended and not reader.waiting:
                end = events_pb2.JobEvent(end=_end(reader.ended[0][1]))
                yield pb.StreamTokensResponse(events=[end]).SerializeToString()
                return

    async def exchange(self, _: object, context: Context) -> None:
        """Any number of jobs."""
        reader = Reader()
        read = asyncio.create_task(self._requests(reader, context))
        try:
            while True:
                await context.write((await reader.take()).SerializeToString())
        finally:
            read.cancel()

    async def _requests(self, reader: Reader, context: Context) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            request = pb.ExchangeRequest.FromString(data)
            if request.HasField("enqueue"):
                result = pb.ExchangeResult(
                    correlation_id=request.correlation_id,
                    handle=self._start(reader),
                    enqueued=pb.EnqueueResponse(),
                )
                reader.results.append(result)
                reader.changed.set()


def _tokens_entry(chunk: bytes) -> bytes:
    body = len(chunk)
    assert body < 1 << 14, "two bytes of length will do here"
    inner = b"\x1a" + bytes((body & 127 | 128, body >> 7)) + chunk
    return b"\x0a" + bytes((len(inner) & 127 | 128, len(inner) >> 7)) + inner


def _end(ended: dispatch_pb2.AttemptEnded) -> events_pb2.End:
    return events_pb2.End(text_bytes=ended.text_bytes, text_digest=ended.text_digest)


async def _write(commands: "asyncio.Queue[registry_pb.DispatchResponse]", context: Context) -> None:
    while True:
        await context.write((await commands.get()).SerializeToString())


async def main() -> None:
    """Serves until the driver ends."""
    argparse.ArgumentParser().parse_args()
    relay = BareRelay()
    server = grpc.aio.server()
    bidi = grpc.stream_stream_rpc_method_handler
    methods: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
        "llamaorch.pool.v1.PoolRegistryService": {
            "Dispatch": bidi(relay.dispatch),
            "ReportSnapshots": bidi(relay.reports),
        },
        "llamaorch.orchestrator.v1.OrchestratorService": {
            "Enqueue": grpc.unary_unary_rpc_method_handler(relay.enqueue),
            "StreamTokens": grpc.unary_stream_rpc_method_handler(relay.stream_tokens),
            "Exchange": bidi(relay.exchange),
        },
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, found) for name, found in methods.items()]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await obey({}, address=f"127.0.0.1:{port}")


if __name__ == "__main__":
    asyncio.run(main())
