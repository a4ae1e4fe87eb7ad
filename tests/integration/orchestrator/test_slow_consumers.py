"""Clients that read slowly or not at all: what they cost, and that others do not notice. LO-302."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import (
    events_pb2,
    job_pb2,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
)
from llamaorch.pool.v1 import dispatch_pb2
from tests.integration.orchestrator.calls import enqueue, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import ScriptedHost

PIECE = "x" * 16_384
CAP_BYTES = 1 << 20
# Far more than all windows and socket buffers between a server and a client on this machine.
PIECES = 2_560
WAIT_S = 40.0


class Reader:
    """A client that reads as it comes and tells how far it is."""

    def __init__(self, orchestrator: Orchestrator, job_id: str) -> None:
        request = orchestrator_service_pb2.StreamTokensRequest(job_id=job_id)
        self._call = orchestrator.jobs.StreamTokens(request)
        self._moved = asyncio.Condition()
        self.offset = 0
        self.ended = False

    async def run(self) -> None:
        """Reads to the end."""
        async for response in self._call:
            for event in response.events:
                self.offset += len("".join(event.tokens.pieces))
                self.ended = self.ended or event.HasField("end")
            async with self._moved:
                self._moved.notify_all()

    async def until(self, offset: int) -> None:
        """Returns once so much was read."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.offset >= offset)


def first_eight(text: "hashlib._Hash") -> int:
    """Digest of the text so far, as the protocol defines it."""
    return int.from_bytes(text.digest()[:8], "big")


def frames(handle: int, number: int, prefix_digest: int) -> dispatch_pb2.TokenFrames:
    """One piece. The scripted host's own way hashes all text before it again each time."""
    offset = number * len(PIECE)
    batch = events_pb2.TokenBatch(
        attempt=1,
        first_index=number,
        text_offset=offset,
        prefix_digest=prefix_digest,
        pieces=[PIECE],
    )
    return dispatch_pb2.TokenFrames(
        handles=[handle],
        first_indexes=[number],
        piece_counts=[1],
        text_offsets=[offset],
        text_bytes=[len(PIECE)],
        chunks=[batch.SerializeToString()],
    )


async def play(orchestrator: Orchestrator, host: ScriptedHost, handle: int, job_id: str) -> None:
    """Streams all pieces to a client that keeps up, and ends the job."""
    reader = Reader(orchestrator, job_id)
    reading = asyncio.create_task(reader.run())
    text = hashlib.sha256()
    for number in range(PIECES):
        await host.frame(tokens=frames(handle, number, first_eight(text)))
        text.update(PIECE.encode())
        await reader.until(number * len(PIECE) - CAP_BYTES // 4)
    ended = dispatch_pb2.AttemptEnded(
        handle=handle,
        finish_reason=job_pb2.FINISH_REASON_EOS,
        next_index=PIECES,
        text_bytes=PIECES * len(PIECE),
        text_digest=first_eight(text),
    )
    await host.frame(ended=[ended])
    await reading
    assert (reader.offset, reader.ended) == (PIECES * len(PIECE), True)


@asynccontextmanager
async def trickle(address: str, first_bytes: int) -> AsyncIterator[str]:
    """A network that lets what the server says through at a byte a second after `first_bytes`."""
    host, _, port = address.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection(host, int(port), limit=1)
        writers.extend((writer, downstream))
        tasks.add(asyncio.create_task(copy(reader, downstream, lambda _: asyncio.sleep(0))))
        passed = 0

        async def slowly(count: int) -> None:
            nonlocal passed
            passed += count
            await asyncio.sleep(0 if passed < first_bytes else 1.0)

        tasks.add(asyncio.create_task(copy(upstream, writer, slowly, size=1)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(it.wait_closed() for it in writers), return_exceptions=True)


async def copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pause: Callable[[int], Awaitable[None]],
    size: int = 65_536,
) -> None:
    """Passes bytes on, with a pause after each read."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(size):
            writer.write(data)
            await writer.drain()
            await pause(len(data))


@pytest.mark.slow
async def test_who_never_reads_holds_up_nobody_and_is_told_what_it_missed(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Flow control bounds what is written for it; the log keeps its cap; then RESUME_WINDOW."""
    orchestrator = await start_orchestrator(jobs={"output_bytes_per_job": CAP_BYTES})
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=receipt.job_id)
    absent = orchestrator.jobs.StreamTokens(request)
    await absent.initial_metadata()

    async with asyncio.timeout(WAIT_S):
        await play(orchestrator, host, start.handle, receipt.job_id)
        held = orchestrator.server.runtime.relay.bytes_held
        got, code = 0, grpc.StatusCode.OK
        try:
            async for response in absent:
                got += response.ByteSize()
        except grpc.aio.AioRpcError as error:
            code = error.code()

    assert held <= CAP_BYTES
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert got < PIECES * len(PIECE) // 2


@pytest.mark.slow
async def test_a_client_at_a_byte_a_second_holds_up_nobody(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Its connection is full after a few megabytes; nothing more is taken out for it.

    It leaves while a write waits for it: that is no bug of ours.
    """
    orchestrator = await start_orchestrator(jobs={"output_bytes_per_job": CAP_BYTES})
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=receipt.job_id)

    async with (
        trickle(str(orchestrator.server.address), 1_000) as address,
        grpc.aio.insecure_channel(address) as channel,
        asyncio.timeout(WAIT_S),
    ):
        stub = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
        slow = stub.StreamTokens(request)
        await slow.initial_metadata()
        await play(orchestrator, host, start.handle, receipt.job_id)
        held = orchestrator.server.runtime.relay.bytes_held
        log = orchestrator.server.runtime.relay.log(receipt.job_id)
        with capture_logs() as lines:
            slow.cancel()
            for _ in range(1_000):
                await asyncio.sleep(0.01 if log.followed else 0)
            assert not log.followed

    assert held <= CAP_BYTES
    assert [line for line in lines if line["event"] == "internal_error"] == []
