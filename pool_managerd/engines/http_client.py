"""A client of an engine's HTTP server: short requests, and generations as streams of events.

A generation is cancelled by closing its connection.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from pool_managerd.engines.port import (
    EngineError,
    Failed,
    Failure,
    GenerationEvent,
    Piece,
    Usage,
)
from pool_managerd.engines.stream_lines import FrameError, Json, LineDecoder

OK = 200
LOADING = 503

_HEALTH_TIMEOUT_S = 1.0
_MAX_ANSWER_BYTES = 32 * 1024 * 1024


class HttpApiError(EngineError):
    """A request other than a generation failed. `status` is 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an engine answers. An empty `api_key` sends none. Timeouts are in milliseconds.

    `silence_timeout_ms` is the longest wait for the next byte of a stream: an engine that exceeds
    it is lost.
    """

    base_url: str
    api_key: str = ""
    connect_timeout_ms: int = 5_000
    answer_timeout_ms: int = 30_000
    silence_timeout_ms: int = 300_000

    def __post_init__(self) -> None:
        """Refuses waits without a bound."""
        waits = (self.connect_timeout_ms, self.answer_timeout_ms, self.silence_timeout_ms)
        if min(waits) < 1:
            raise ValueError("every timeout of an Endpoint must be at least 1 ms")


class EventReader(Protocol):
    """Turns the payloads of one generation into events."""

    @property
    def tokens_out(self) -> int | None:
        """Tokens that the engine has reported so far."""
        ...

    def read(self, payload: bytes) -> list[GenerationEvent]:
        """Returns the events of one payload.

        Raises:
            FrameError: when the payload is no frame.
        """
        ...

    def close(self) -> list[GenerationEvent]:
        """Returns the events that the end of the stream brings; none if it came too early."""
        ...

    def error(self, status: int, body: object) -> Failed:
        """Returns the event for an answer that is no stream."""
        ...


@dataclass(slots=True)
class Progress:
    """How far a generation got. `answered`: the engine has sent something for it.

    `settled`: the engine works on it no more, for it said so or never heard of it.
    """

    answered: bool = False
    settled: bool = False


class HttpClient:
    """One connection pool to one engine. `explain` puts an error's status and body into words."""

    def __init__(self, endpoint: Endpoint, explain: Callable[[int, object], str]) -> None:
        self._endpoint = endpoint
        self._explain = explain
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Prepares the connection pool. Needs a running event loop; `close` ends it."""
        headers = {}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        # Silence is watched by `Silence`: aiohttp's `sock_read` makes a timer for every chunk.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._endpoint.connect_timeout_ms / 1000
        )
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A kept connection may be closed by the server just when a generation takes it, which
            # is not distinguishable from a dead engine.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    async def close(self) -> None:
        """Closes all connections; open generations end with ENGINE_DIED. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def healthy(self, path: str) -> bool:
        """Tells whether the engine answers 200 at `path` within a second; never raises."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self.text("GET", path)
        except (HttpApiError, TimeoutError):
            return False
        return True

    async def wait_ready(self, path: str, poll_interval_s: float) -> None:
        """Returns once the model is loaded: the server answers 503 until then, and pushes nothing.

        The caller bounds the wait.

        Raises:
            HttpApiError: when the server does not answer, or answers something else.
        """
        while True:
            try:
                await self.text("GET", path)
            except HttpApiError as error:
                if error.status != LOADING:
                    raise
            else:
                return
            await asyncio.sleep(poll_interval_s)

    async def call(self, method: str, path: str, body: Json | None = None) -> object:
        """Returns the parsed answer of a short request; None when it is no JSON.

        Raises:
            HttpApiError: when there is none in time, or its status is not 200.
        """
        return _parsed(await self.text(method, path, body))

    async def text(
        self, method: str, path: str, body: Json | None = None, timeout_ms: int = 0
    ) -> bytes:
        """Returns the answer of a short request. `timeout_ms` 0 means the endpoint's.

        Raises:
            HttpApiError: when there is none in time, or its status is not 200.
        """
        wait_ms = timeout_ms or self._endpoint.answer_timeout_ms
        try:
            async with (
                asyncio.timeout(wait_ms / 1000),
                self._connected().request(
                    method, self._url(path), json=body, allow_redirects=False
                ) as response,
            ):
                status, text = response.status, await _read(response)
        except (aiohttp.ClientError, OSError, FrameError) as error:
            raise HttpApiError(f"{path} does not answer ({type(error).__name__})") from error
        if status != OK:
            raise HttpApiError(self._explain(status, _parsed(text)), status)
        return text

    async def events(
        self, path: str, body: Json, traceparent: str, reader: EventReader, progress: Progress
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams one generation until its first end; closing this closes the connection.

        `progress` is kept up to date. Without a proper end the last event is ENGINE_DIED.
        """
        try:
            async with self._answered(path, body, traceparent) as (response, silence):
                progress.answered = True
                if response.status != OK:
                    progress.settled = True
                    yield reader.error(response.status, _parsed(await _read(response)))
                    return
                decoder = LineDecoder()
                while chunk := await _chunk(response):
                    silence.broken()
                    for payload in decoder.feed(chunk):
                        for event in reader.read(payload):
                            progress.settled = not isinstance(event, Piece)
                            yield event
                            if progress.settled:
                                return
                for event in reader.close():
                    progress.settled = not isinstance(event, Piece)
                    yield event
                    if progress.settled:
                        return
            failure, reason = Failure.ENGINE_DIED, "the engine closed the stream before its end"
        except (FrameError, TimeoutError, aiohttp.ClientError, OSError) as error:
            failure, reason = self._breach(error, progress)
        yield Failed(failure, reason, Usage(tokens_out=reader.tokens_out))

    def _breach(self, error: Exception, progress: Progress) -> tuple[Failure, str]:
        """What it means for a generation, and for its slot, that reading failed like that."""
        match error:
            case FrameError():
                progress.settled = True
                return Failure.ENGINE_ERROR, str(error)
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                progress.settled = True
                reason = "the engine does not accept connections"
            case TimeoutError():
                reason = f"the engine was silent for {self._endpoint.silence_timeout_ms} ms"
            case _:
                reason = f"the connection to the engine broke ({type(error).__name__})"
        return Failure.ENGINE_DIED, reason

    @contextlib.asynccontextmanager
    async def _answered(
        self, path: str, body: Json, traceparent: str
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, "Silence"]]:
        """The answer to a generation's request, from its first line on."""
        headers = {"traceparent": traceparent} if traceparent else {}
        silence_s = self._endpoint.silence_timeout_ms / 1000
        async with asyncio.timeout(silence_s):
            response = await self._connected().post(
                self._url(path), json=body, headers=headers, allow_redirects=False
            )
        silence = Silence(response.content, silence_s)
        try:
            yield response, silence
        finally:
            silence.end()
            # Closes the socket even in the middle of a stream: this is what cancels.
            response.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise aiohttp.ClientConnectionError("not connected")
        return self._session

    def _url(self, path: str) -> str:
        return self._endpoint.base_url.rstrip("/") + path


class Interruptible(Protocol):
    """The body of an answer; satisfied by `aiohttp.StreamReader`."""

    def set_exception(self, error: BaseException, /) -> None:
        """Raises `error` in whoever reads."""
        ...


class Silence:
    """Breaks off an answer that brings nothing for `limit_s`; a chunk moves no timer."""

    def __init__(self, content: Interruptible, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._content = content
        self._limit_s = limit_s
        self._heard_s = self._loop.time()
        self._timer = self._loop.call_later(limit_s, self._look)

    def broken(self) -> None:
        """Notes that something came."""
        self._heard_s = self._loop.time()

    def end(self) -> None:
        """Watches no more."""
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._heard_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._content.set_exception(TimeoutError())


async def _chunk(response: aiohttp.ClientResponse) -> bytes:
    """Returns what arrives next; nothing once the answer is complete.

    Raises:
        aiohttp.ClientError: when the connection breaks first.
    """
    try:
        return await response.content.readany()
    except RuntimeError as error:
        # aiohttp says so about a connection that was closed while nobody read from it.
        raise aiohttp.ClientConnectionError("connection closed") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Reads a whole answer of bounded size."""
    answer = bytearray()
    while chunk := await _chunk(response):
        answer += chunk
        if len(answer) > _MAX_ANSWER_BYTES:
            raise FrameError("the engine's answer is too long")
    return bytes(answer)


def _parsed(text: bytes) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value
