"""An HTTP/2 connection that sends what no gRPC library would."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

WAIT_S = 15.0
CLOSED = "closed"
# Source: RFC 9113, 4.1 and 6.2.
FLAGS_AT, END_HEADERS = 4, 0x4
ENQUEUE = "/llamaorch.orchestrator.v1.OrchestratorService/Enqueue"


class Raw:
    """One connection. `ended` has what came back for each stream; `gone` says how all ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
        self.ended: dict[int, str] = {}
        self.gone = ""
        self.settled = False

    def open_unended(self, path: str) -> bytes:
        """The frame that begins a call, without the flag that says its headers are complete."""
        self.h2.data_to_send()
        self.open(path)
        data = bytearray(self.h2.data_to_send())
        data[FLAGS_AT] &= ~END_HEADERS
        return bytes(data)

    def open(self, path: str, *headers: tuple[str, str], end: bool = False) -> int:
        """Begins a call; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        usual = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self.h2.send_headers(stream, [*usual, *headers], end_stream=end)
        return stream

    async def flush(self) -> None:
        """Sends what was said; a server that has hung up does not mind."""
        try:
            self._writer.write(self.h2.data_to_send())
            await self._writer.drain()
        except ConnectionError:
            self.gone = self.gone or CLOSED

    async def write(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def tried(self, data: bytes) -> bool:
        """Sends bytes as they are; False where the server has hung up."""
        try:
            await self.write(data)
        except ConnectionError:
            self.gone = self.gone or CLOSED
            return False
        return True

    async def end(self) -> set[str]:
        """Reads until the server hangs up; says how."""
        await self.until(lambda: False)
        return {self.gone}

    async def until(self, done: Callable[[], bool]) -> None:
        """Reads until `done`, or until the server has hung up."""
        async with asyncio.timeout(WAIT_S):
            while not done() and not self.gone:
                try:
                    data = await self._reader.read(65_536)
                except ConnectionError:
                    data = b""
                if not data:
                    self.gone = self.gone or CLOSED
                    return
                self._take(data)
                await self.flush()

    async def answers(self, streams: Iterable[int]) -> set[str]:
        """How calls ended; `gone` for those of a connection that was closed."""
        wanted = list(streams)
        await self.until(lambda: all(stream in self.ended for stream in wanted))
        return {self.ended.get(stream, self.gone) for stream in wanted}

    def _take(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case ResponseReceived() | TrailersReceived():
                    said = {_text(key): _text(value) for key, value in event.headers}
                    status = said.get("grpc-status") or (
                        f"HTTP {said[':status']}" if said.get(":status", "200") != "200" else ""
                    )
                    if status and event.stream_id is not None:
                        self.ended[event.stream_id] = status
                case StreamReset(stream_id=stream, error_code=code):
                    self.ended.setdefault(stream or 0, f"RST {int(code or 0)}")
                case StreamEnded(stream_id=stream):
                    self.ended.setdefault(stream or 0, "ended")
                case ConnectionTerminated(error_code=code):
                    self.gone = f"GOAWAY {int(code or 0)}"
                case SettingsAcknowledged():
                    self.settled = True


def framed(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message in its frame, whose header may lie."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def _text(value: bytes | str | None) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value or ""


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Raw]:
    """A connection past the exchange of settings."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    raw = Raw(reader, writer)
    try:
        raw.h2.initiate_connection()
        await raw.flush()
        await raw.until(lambda: raw.settled)
        yield raw
    finally:
        writer.close()
