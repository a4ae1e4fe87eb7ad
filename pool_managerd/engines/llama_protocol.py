"""A client of llama-server's native HTTP API, for every engine that speaks it.

The caller owns the slots: it never has more generations open than the server has slots.
A generation is cancelled by closing its connection. llama-server pushes no news about that, so
`confirm_idle` asks `/slots` every few milliseconds until the slot is idle: the one place where this
package polls. The header `X-Conversation-Id` is never sent, because it makes a server go on
generating after a disconnect.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

import aiohttp

from pool_managerd.engines.llama_slots import SlotLease, SlotTable
from pool_managerd.engines.llama_wire import (
    FrameError,
    FrameReader,
    Json,
    LineDecoder,
    completion_body,
    error_event,
    invalid,
    redacted,
)
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    EngineError,
    Failed,
    Failure,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Usage,
)

_HEALTH_TIMEOUT_S = 1.0
_POLL_INTERVAL_S = 0.01
_QUIET_POLLS_UNANSWERED = 3
_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_OK = 200
_LOADING = 503


class LlamaApiError(EngineError):
    """A request other than a generation failed. `status` is 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a llama-server answers. An empty `api_key` sends none. Timeouts are in milliseconds.

    `silence_timeout_ms` is the longest wait for the next byte of a stream; the server sends pings
    between tokens, so a server that exceeds it is lost.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a running llama-server says about itself. `ctx_per_slot` is in tokens."""

    slots_total: int
    ctx_per_slot: int
    build: str
    model_file: str
    quantization: str
    meta: Mapping[str, object]


class LlamaProtocol:
    """One connection pool to one llama-server, and the leases of its slots."""

    def __init__(self, endpoint: Endpoint, *, deterministic: bool) -> None:
        self._endpoint = endpoint
        self._deterministic = deterministic
        self._session: aiohttp.ClientSession | None = None
        self._slots: SlotTable | None = None
        self._ctx_max = 0

    def open(self) -> None:
        """Prepares the connection pool. Needs a running event loop; `close` ends it."""
        headers = {}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self._endpoint.connect_timeout_ms / 1000,
            sock_read=self._endpoint.silence_timeout_ms / 1000,
        )
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A kept connection may be closed by the server just when a generation takes it, which
            # is not distinguishable from a dead engine.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    def serve(self, slots_total: int, ctx_max: int) -> None:
        """Sets how many generations may be open and the context of each, in tokens."""
        self._slots = SlotTable(slots_total)
        self._ctx_max = ctx_max

    async def close(self) -> None:
        """Closes all connections; open generations end with ENGINE_DIED. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def healthy(self) -> bool:
        """Tells whether the server answers its health check within a second; never raises."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._call("GET", "/health")
        except (LlamaApiError, TimeoutError):
            return False
        return True

    async def wait_ready(self, poll_interval_s: float) -> None:
        """Returns once the model is loaded: the server answers 503 until then, and pushes nothing.

        The caller bounds the wait.

        Raises:
            LlamaApiError: when the server does not answer, or answers something else.
        """
        while True:
            try:
                await self._call("GET", "/health")
            except LlamaApiError as error:
                if error.status != _LOADING:
                    raise
            else:
                return
            await asyncio.sleep(poll_interval_s)

    async def facts(self) -> ServerFacts:
        """Asks the server what it serves.

        Raises:
            LlamaApiError: when it does not answer, or answers something else.
        """
        props = await self._call("GET", "/props")
        slots = await self._call("GET", "/slots")
        models = await self._call("GET", "/v1/models")
        if not isinstance(props, dict) or not isinstance(slots, list) or not slots:
            raise LlamaApiError("/props and /slots do not answer like a llama-server's")
        contexts = [slot.get("n_ctx") for slot in slots if isinstance(slot, dict)]
        sizes = [size for size in contexts if isinstance(size, int) and size > 0]
        if not sizes:
            raise LlamaApiError("/slots does not tell the context of a slot")
        return ServerFacts(
            slots_total=len(slots),
            ctx_per_slot=min(sizes),
            build=str(props.get("build_info") or ""),
            model_file=str(props.get("model_path") or "").rpartition("/")[2],
            quantization=str(props.get("model_ftype") or ""),
            meta=_model_meta(models),
        )

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns once the slot of a closed generation is idle, and gives the slot back.

        Raises:
            CancelUnconfirmedError: when it is not idle after `timeout_ms`.
        """
        lease = self._slots.lease_of(request_id) if self._slots else None
        if lease is None:
            return
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._wait_until_idle(lease)
        except TimeoutError:
            raise CancelUnconfirmedError(
                f"slot {lease.slot} is still busy {timeout_ms} ms after the cancel"
            ) from None
        self._release(lease)

    async def _wait_until_idle(self, lease: SlotLease) -> None:
        # A request that was closed before the engine answered may still be on its way into the
        # slot, so one glance at an idle slot proves nothing.
        quiet_polls_needed = 1 if lease.answered else _QUIET_POLLS_UNANSWERED
        quiet_polls = 0
        while True:
            quiet_polls = quiet_polls + 1 if await self._is_idle(lease.slot) else 0
            if quiet_polls == quiet_polls_needed:
                return
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _is_idle(self, slot_id: int) -> bool:
        try:
            slots = await self._call("GET", "/slots")
        except LlamaApiError:
            return False
        entries = slots if isinstance(slots, list) else []
        return any(
            isinstance(entry, dict)
            and entry.get("id") == slot_id
            and entry.get("is_processing") is False
            for entry in entries
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Streams one generation, as `Engine.generate` says."""
        assert self._slots is not None, "serve() comes before generate()"
        prompt = await self._prompt(request)
        if isinstance(prompt, Failed):
            yield redacted(prompt, _secrets(request))
            return
        if self._slots.lease_of(request.request_id) is not None:
            yield invalid("a generation with this request id is open")
            return
        lease = self._slots.acquire(request.request_id, prompt)
        if lease is None:
            yield Failed(Failure.ENGINE_ERROR, "all slots of the engine are taken")
            return
        body = completion_body(
            request, prompt, lease.slot, self._ctx_max, deterministic=self._deterministic
        )
        if isinstance(body, Failed):
            self._release(lease)
            yield body
            return
        async with contextlib.aclosing(self._events(request, body, lease)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    yield redacted(event, _secrets(request))
                else:
                    yield event

    async def _events(
        self, request: GenerationRequest, body: Json, lease: SlotLease
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams until the first end. A lost connection leaves the slot to `confirm_idle`."""
        reader = FrameReader()
        try:
            async with contextlib.aclosing(self._frames(request, body, lease, reader)) as events:
                async for event in events:
                    if isinstance(event, Finished | Failed):
                        self._release(lease)
                        yield event
                        return
                    yield event
            reason = "the engine closed the stream before its end"
        except FrameError as error:
            self._release(lease)
            yield Failed(Failure.ENGINE_ERROR, str(error), Usage(tokens_out=reader.tokens_out))
            return
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            self._release(lease)
            reason = "the engine does not accept connections"
        except TimeoutError:
            reason = f"the engine was silent for {self._endpoint.silence_timeout_ms} ms"
        except (aiohttp.ClientError, OSError) as error:
            reason = f"the connection to the engine broke ({type(error).__name__})"
        yield Failed(Failure.ENGINE_DIED, reason, Usage(tokens_out=reader.tokens_out))

    async def _frames(
        self, request: GenerationRequest, body: Json, lease: SlotLease, reader: FrameReader
    ) -> AsyncGenerator[GenerationEvent, None]:
        headers = {"traceparent": request.traceparent} if request.traceparent else {}
        async with self._connected().post(
            self._url("/completion"), json=body, headers=headers, allow_redirects=False
        ) as response:
            try:
                lease.answered = True
                if response.status != _OK:
                    yield error_event(response.status, _parsed(await _read(response)))
                    return
                decoder = LineDecoder()
                async for chunk in _chunks(response):
                    for payload in decoder.feed(chunk):
                        for event in reader.read(payload):
                            yield event
            finally:
                # Closes the socket even in the middle of a stream: this is what cancels.
                response.close()

    async def _prompt(self, request: GenerationRequest) -> str | Failed:
        """Returns the text to continue; the engine renders a conversation with its own template."""
        if isinstance(request.prompt, str):
            return request.prompt
        messages = [{"role": turn.role, "content": turn.content} for turn in request.prompt]
        try:
            answer = await self._call("POST", "/apply-template", {"messages": messages})
        except LlamaApiError as error:
            if error.status == 0:
                return Failed(Failure.ENGINE_DIED, str(error))
            return error_event(error.status, {"error": {"message": str(error)}})
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(prompt, str):
            return Failed(Failure.ENGINE_ERROR, "/apply-template returned no prompt")
        return prompt

    async def _call(self, method: str, path: str, body: Json | None = None) -> object:
        """Returns the parsed answer of a short request.

        Raises:
            LlamaApiError: when there is none in time, or its status is not 200.
        """
        try:
            async with (
                asyncio.timeout(self._endpoint.answer_timeout_ms / 1000),
                self._connected().request(
                    method, self._url(path), json=body, allow_redirects=False
                ) as response,
            ):
                status, text = response.status, await _read(response)
        except (aiohttp.ClientError, OSError, FrameError) as error:
            raise LlamaApiError(f"{path} does not answer ({type(error).__name__})") from error
        if status != _OK:
            raise LlamaApiError(error_event(status, _parsed(text)).message, status)
        return _parsed(text)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise aiohttp.ClientConnectionError("not connected")
        return self._session

    def _url(self, path: str) -> str:
        return self._endpoint.base_url.rstrip("/") + path

    def _release(self, lease: SlotLease) -> None:
        assert self._slots is not None, "a lease comes from a table"
        self._slots.release(lease)


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yields what arrives, until the answer is complete.

    Raises:
        aiohttp.ClientError: when the connection breaks first.
    """
    while True:
        try:
            chunk = await response.content.readany()
        except RuntimeError as error:
            # aiohttp says so about a connection that was closed while nobody read from it.
            raise aiohttp.ClientConnectionError("connection closed") from error
        if not chunk:
            return
        yield chunk


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Reads a whole answer of bounded size."""
    answer = bytearray()
    async for chunk in _chunks(response):
        answer += chunk
        if len(answer) > _MAX_ANSWER_BYTES:
            raise FrameError("the engine's answer is too long")
    return bytes(answer)


def _parsed(text: bytes) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return None
    return value


def _model_meta(models: object) -> Mapping[str, object]:
    entries = models.get("data") if isinstance(models, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    meta = first.get("meta") if isinstance(first, dict) else None
    return meta if isinstance(meta, dict) else {}


def _secrets(request: GenerationRequest) -> tuple[str, ...]:
    """Returns what an error message must not quote."""
    if isinstance(request.prompt, str):
        texts = [request.prompt]
    else:
        texts = [message.content for message in request.prompt]
    sampling = request.sampling
    return (*texts, sampling.grammar or "", sampling.json_schema or "", *sampling.stop)
