"""One request to an HTTP server and its answer, which is passed on in the callback it arrives in.

A stream of tokens is a stream of small chunks: what a queue, a task to wake and a layer for each
costs is most of what a token costs (benchmarks/README.md). Each request has a connection of its
own: a kept one may be closed by the server just when a generation takes it, which is not
distinguishable from a dead engine.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httptools

from pool_managerd.engines.port import EngineError

OK = 200
HEAD_BYTES_MAX = 65_536
"""Longest accepted status line with all headers."""

_FIRST_FINAL_STATUS = 200
_CLEAR_PORT, _TLS_PORT = 80, 443


class AnswerError(EngineError):
    """The connection broke, or what came is no HTTP. The message says which, for people."""


class UnreachableError(AnswerError):
    """There was no connection, so the server has never heard of the request."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go. `headers` come with each of them.

    Raises:
        ValueError: when a header has a line break, or the address names no host.
    """

    base_url: str
    headers: Mapping[str, str]
    connect_timeout_s: float

    def __post_init__(self) -> None:
        if any("\r" in value or "\n" in value for value in self.headers.values()):
            raise ValueError("a header has no line breaks")
        if not self._parts().hostname:
            raise ValueError(f"{self.base_url} names no host")

    def _parts(self) -> SplitResult:
        return urlsplit(self.base_url)

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """A request as it is sent; `body` is JSON."""
        parts = self._parts()
        lines = {
            "Host": parts.netloc.rpartition("@")[2].encode("idna").decode("ascii"),
            "Accept": "*/*",
            "Connection": "close",
            **self.headers,
            **headers,
        }
        if body:
            lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1\r\n{head}\r\n".encode() + body

    async def connect(self, answer: "Answer") -> None:
        """Opens a connection for `answer`.

        Raises:
            UnreachableError: when there is none in time.
        """
        parts = self._parts()
        assert parts.hostname is not None, "the constructor checks it"
        tls = parts.scheme == "https"
        port = parts.port or (_TLS_PORT if tls else _CLEAR_PORT)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                await loop.create_connection(lambda: answer, parts.hostname, port, ssl=tls or None)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(
                f"the engine does not accept connections ({type(error).__name__})"
            ) from error


class Answer(asyncio.Protocol):
    """The answer to one request. `take` gets the body of an answer 200 as it arrives.

    What `take` raises ends the answer, and is raised to who waits for its end. `bytes_max` bounds
    the body of any other answer, which is kept.
    """

    def __init__(self, take: Callable[[bytes], None] | None, bytes_max: int) -> None:
        loop = asyncio.get_running_loop()
        self._take = take
        self._bytes_max = bytes_max
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._begun: asyncio.Future[int] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        for future in (self._begun, self._ended):
            future.add_done_callback(_looked_at)
        self._head_bytes = 0
        self._until_closed = True
        self._kept = bytearray()
        self._status = 0
        self.heard_s = loop.time()
        self._now_s = loop.time

    async def status(self) -> int:
        """The status, once all headers have come.

        Raises:
            AnswerError: when the connection breaks before.
        """
        return await self._begun

    async def end(self) -> None:
        """Returns at the end of the answer.

        Raises:
            AnswerError: when it is cut off before.
        """
        await self._ended

    async def body(self) -> bytes:
        """What was not passed on, at the end of the answer. Raises: see `end`."""
        await self._ended
        return bytes(self._kept)

    def send(self, request: bytes) -> None:
        """Sends the request."""
        if self._transport is not None:
            self._transport.write(request)

    @property
    def over(self) -> bool:
        """True once nothing more comes."""
        return self._ended.done()

    @property
    def complete(self) -> bool:
        """True once it is over and was not cut off."""
        return self._ended.done() and not self._ended.cancelled() and not self._ended.exception()

    def when_over(self, call: Callable[[], None]) -> None:
        """Calls `call` once the answer is over, at the loop's next turn if it is."""
        self._ended.add_done_callback(lambda _: call())

    def pause(self) -> None:
        """Reads no more until `resume`. Idempotent."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads on. Idempotent."""
        if self._transport is not None:
            self._transport.resume_reading()

    def fail(self, error: Exception) -> None:
        """Ends the answer with `error`, unless it is over; the connection is closed."""
        for future in (self._begun, self._ended):
            if not future.done():
                future.set_exception(error)
        self.close()

    def close(self) -> None:
        """Closes the connection at once, also in the middle of an answer. Idempotent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport), "a stream of bytes"
        if self._ended.done():
            transport.abort()
            return
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard_s = self._now_s()
        if self._transport is None or self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(AnswerError(f"the engine's answer is no HTTP ({type(error).__name__})"))
        if not self._status:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.fail(AnswerError(f"the engine's headers exceed {HEAD_BYTES_MAX} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._status and self._until_closed and exc is None:
            self.on_message_complete()
        cause = type(exc).__name__ if exc else "closed before the end"
        self.fail(AnswerError(f"the connection to the engine broke ({cause})"))
        self._parser = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools: what delimits the body."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_closed = False

    def on_headers_complete(self) -> None:
        """See httptools: more answers follow one that is only informal."""
        assert self._parser is not None, "it calls"
        status = self._parser.get_status_code()
        if status >= _FIRST_FINAL_STATUS and not self._begun.done():
            self._status = status
            self._begun.set_result(status)

    def on_body(self, body: bytes) -> None:
        """See httptools: one part of the body."""
        if self._ended.done():
            return
        if self._take is None or self._status != OK:
            self._keep(body)
            return
        try:
            self._take(body)
        except Exception as error:  # noqa: BLE001 - whoever waits for the end is told
            self.fail(error)

    def _keep(self, body: bytes) -> None:
        if len(self._kept) + len(body) > self._bytes_max:
            self.fail(AnswerError("the engine's answer is too long"))
        else:
            self._kept += body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._status and not self._ended.done():
            self._ended.set_result(None)


def _looked_at(future: "asyncio.Future[int] | asyncio.Future[None]") -> None:
    # Nobody may wait for the end of an answer that is closed early, which is no lost exception.
    if not future.cancelled():
        future.exception()
