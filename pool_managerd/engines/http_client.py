"""A client of an engine's HTTP server: short requests, and generations as streams of events.

A generation is cancelled by closing its connection.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pool_managerd.engines.http_answer import OK, Answer, AnswerError, Server, UnreachableError
from pool_managerd.engines.port import (
    EngineError,
    Failed,
    Failure,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Keep,
    Piece,
    Usage,
)
from pool_managerd.engines.stream_lines import FrameError, Json, LineDecoder

LOADING = 503

_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_WAITING_PIECES_MAX = 256


_AWAY = frozenset({0, 502, 503, 504})


class HttpApiError(EngineError):
    """A request other than a generation failed. `status` is 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """True when the server may be there later: it does not answer, or a proxy says so."""
        return self.status in _AWAY


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
    """Requests to one engine. `explain` puts an error's status and body into words."""

    def __init__(self, endpoint: Endpoint, explain: Callable[[int, object], str]) -> None:
        self._endpoint = endpoint
        self._explain = explain
        key = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._server = Server(endpoint.base_url, key, endpoint.connect_timeout_ms / 1000)
        self._answers: set[Answer] | None = None

    def open(self) -> None:
        """Lets requests through until `close`."""
        self._answers = set()

    async def close(self) -> None:
        """Closes all connections; open generations end with ENGINE_DIED. Idempotent."""
        answers, self._answers = self._answers, None
        for answer in answers or ():
            answer.fail(AnswerError("the connection to the engine was closed"))

    async def healthy(self, path: str) -> bool:
        """Tells whether the engine answers 200 at `path`; never raises."""
        try:
            await self.text("GET", path)
        except HttpApiError:
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
        content = b"" if body is None else json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(wait_ms / 1000),
                self._asked(method, path, content, {}, None) as answer,
            ):
                status, text = await answer.status(), await answer.body()
        except AnswerError as error:
            raise HttpApiError(f"{path} does not answer: {error}") from error
        except TimeoutError:
            raise HttpApiError(f"{path} does not answer within {wait_ms} ms") from None
        if status != OK:
            raise HttpApiError(self._explain(status, _parsed(text)), status)
        return text

    async def events(
        self,
        path: str,
        body: Json,
        request: GenerationRequest,
        reader: EventReader,
        progress: Progress,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams one generation until its first end; closing this closes the connection.

        `progress` is kept up to date. Without a proper end the last event is ENGINE_DIED.
        """
        generation = _Generation(reader, progress, request.keep)
        headers = {"traceparent": request.traceparent} if request.traceparent else {}
        silence_s = self._endpoint.silence_timeout_ms / 1000
        content = json.dumps(body).encode()
        try:
            async with self._asked("POST", path, content, headers, generation.take) as answer:
                async with asyncio.timeout(silence_s):
                    status = await answer.status()
                progress.answered = True
                with Silence(answer, silence_s):
                    if status != OK:
                        progress.settled = True
                        yield reader.error(status, _parsed(await answer.body()))
                        return
                    async for event in generation.events(answer):
                        yield event
            if progress.settled:
                return
            failure, reason = Failure.ENGINE_DIED, "the engine closed the stream before its end"
        except (FrameError, TimeoutError, AnswerError) as error:
            failure, reason = self._breach(error, progress)
        yield Failed(failure, reason, Usage(tokens_out=reader.tokens_out))

    def _breach(self, error: Exception, progress: Progress) -> tuple[Failure, str]:
        """What it means for a generation, and for its slot, that reading failed like that."""
        match error:
            case FrameError():
                progress.settled = True
                return Failure.ENGINE_ERROR, str(error)
            case UnreachableError():
                progress.settled = True
                reason = str(error)
            case TimeoutError():
                reason = f"the engine was silent for {self._endpoint.silence_timeout_ms} ms"
            case _:
                reason = str(error)
        return Failure.ENGINE_DIED, reason

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        content: bytes,
        headers: Mapping[str, str],
        take: Callable[[bytes], None] | None,
    ) -> AsyncIterator[Answer]:
        """The answer to a request that was sent; its connection is closed in any case."""
        if self._answers is None:
            raise AnswerError("the connection to the engine was closed")
        answer = Answer(take, _MAX_ANSWER_BYTES)
        self._answers.add(answer)
        try:
            await self._server.connect(answer)
            answer.send(self._server.request(method, path, content, headers))
            yield answer
        finally:
            # Also in the middle of a stream: this is what cancels.
            answer.close()
            if self._answers is not None:
                self._answers.discard(answer)


class _Generation:
    """Makes events of the bytes of one generation, in the callback that brings them.

    Pieces go to `keep`; without it they wait for `events`, and reading pauses when many do.
    """

    def __init__(self, reader: EventReader, progress: Progress, keep: Keep | None) -> None:
        self._reader = reader
        self._progress = progress
        self._lines = LineDecoder()
        self._keep = keep or self._queue
        self._pieces: deque[Piece] = deque()
        self._answer: Answer | None = None
        self._end: Finished | Failed | None = None
        self._news = asyncio.Event()

    def take(self, body: bytes) -> None:
        """Reads a part of the answer.

        Raises:
            FrameError: when it is no stream of frames.
        """
        for payload in self._lines.feed(body):
            if self._end is not None:
                return
            for event in self._reader.read(payload):
                if isinstance(event, Piece):
                    self._keep(event)
                else:
                    self._note([event])

    def _note(self, events: list[GenerationEvent]) -> None:
        for event in events:
            if isinstance(event, Piece):
                self._keep(event)
            else:
                self._end = event
                self._progress.settled = True
                self._news.set()
                return

    def _queue(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._news.set()
        if len(self._pieces) >= _WAITING_PIECES_MAX and self._answer is not None:
            self._answer.pause()

    async def events(self, answer: Answer) -> AsyncGenerator[GenerationEvent, None]:
        """What is not kept, then the end, if there is one.

        Raises:
            FrameError: when the answer is no stream of frames.
            AnswerError: when it was cut off.
            TimeoutError: when it was silent for too long.
        """
        self._answer = answer
        answer.when_over(self._news.set)
        while True:
            await self._news.wait()
            self._news.clear()
            if self._end is None and answer.complete:
                self._note(self._reader.close())
            while self._pieces:
                yield self._pieces.popleft()
            answer.resume()
            if self._end is not None:
                yield self._end
                return
            if answer.over:
                await answer.end()
                return


class Interruptible(Protocol):
    """An answer that comes; satisfied by `Answer`. `heard_s` is when something last came."""

    heard_s: float

    def fail(self, error: Exception, /) -> None:
        """Raises `error` in whoever waits for the end."""
        ...


class Silence:
    """Breaks off an answer that brings nothing for `limit_s`; what comes moves no timer."""

    def __init__(self, answer: Interruptible, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._limit_s = limit_s
        self._timer = self._loop.call_later(limit_s, self._look)

    def __enter__(self) -> None:
        """Watches for the duration of the block."""

    def __exit__(self, *_: object) -> None:
        """Watches no more."""
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._answer.heard_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._answer.fail(TimeoutError())


def _parsed(text: bytes) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value
