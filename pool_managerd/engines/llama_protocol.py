"""A client of llama-server's native HTTP API, for every engine that speaks it.

The caller owns the slots: it never has more generations open than the server has slots.
A generation is cancelled by closing its connection. llama-server pushes no news about that, so
`confirm_idle` asks `/slots` every few milliseconds until the slot is idle: the one place where this
package polls. The header `X-Conversation-Id` is never sent, because it makes a server go on
generating after a disconnect.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from pool_managerd.engines.failures import invalid, redacted, secrets_of
from pool_managerd.engines.http_client import Endpoint, HttpApiError, HttpClient
from pool_managerd.engines.llama_slots import SlotLease, SlotTable
from pool_managerd.engines.llama_wire import NO_LOGPROBS, FrameReader, completion_body, llama_error
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
)

_POLL_INTERVAL_S = 0.01
_QUIET_POLLS_UNANSWERED = 3


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

    def __init__(self, endpoint: Endpoint, *, deterministic: bool, drafts: bool = False) -> None:
        self._http = HttpClient(endpoint, lambda status, body: llama_error(status, body).message)
        self._deterministic = deterministic
        self._drafts = drafts
        self._slots: SlotTable | None = None
        self._ctx_max = 0

    def open(self) -> None:
        """Prepares the connection pool. Needs a running event loop; `close` ends it."""
        self._http.open()

    def serve(self, slots_total: int, ctx_max: int) -> None:
        """Sets how many generations may be open and the context of each, in tokens."""
        self._slots = SlotTable(slots_total)
        self._ctx_max = ctx_max

    async def close(self) -> None:
        """Closes all connections; open generations end with ENGINE_DIED. Idempotent."""
        await self._http.close()

    async def healthy(self) -> bool:
        """Tells whether the server answers its health check; never raises."""
        return await self._http.healthy("/health")

    async def wait_ready(self, poll_interval_s: float) -> None:
        """Returns once the model is loaded. The caller bounds the wait.

        Raises:
            HttpApiError: when the server does not answer, or answers something else.
        """
        await self._http.wait_ready("/health", poll_interval_s)

    async def facts(self) -> ServerFacts:
        """Asks the server what it serves.

        Raises:
            HttpApiError: when it does not answer, or answers something else.
        """
        props = await self._http.call("GET", "/props")
        slots = await self._http.call("GET", "/slots")
        models = await self._http.call("GET", "/v1/models")
        if not isinstance(props, dict) or not isinstance(slots, list) or not slots:
            raise HttpApiError("/props and /slots do not answer like a llama-server's")
        contexts = [slot.get("n_ctx") for slot in slots if isinstance(slot, dict)]
        sizes = [size for size in contexts if isinstance(size, int) and size > 0]
        if not sizes:
            raise HttpApiError("/slots does not tell the context of a slot")
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
        quiet_polls_needed = 1 if lease.progress.answered else _QUIET_POLLS_UNANSWERED
        quiet_polls = 0
        while True:
            quiet_polls = quiet_polls + 1 if await self._is_idle(lease.slot) else 0
            if quiet_polls == quiet_polls_needed:
                return
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _is_idle(self, slot_id: int) -> bool:
        try:
            slots = await self._http.call("GET", "/slots")
        except HttpApiError:
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
        secrets = secrets_of(request)
        if self._drafts and request.sampling.logprobs is not None:
            yield invalid(NO_LOGPROBS)
            return
        prompt = await self._prompt(request)
        if isinstance(prompt, Failed):
            yield redacted(prompt, secrets)
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
        reader = FrameReader(request.sampling.logprobs)
        stream = self._http.events("/completion", body, request, reader, lease.progress)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                if lease.progress.settled:
                    self._release(lease)
                yield redacted(event, secrets) if isinstance(event, Failed) else event

    async def _prompt(self, request: GenerationRequest) -> str | Failed:
        """Returns the text to continue; the engine renders a conversation with its own template."""
        if isinstance(request.prompt, str):
            return request.prompt
        messages = [{"role": turn.role, "content": turn.content} for turn in request.prompt]
        try:
            answer = await self._http.call("POST", "/apply-template", {"messages": messages})
        except HttpApiError as error:
            if error.status == 0:
                return Failed(Failure.ENGINE_DIED, str(error))
            return llama_error(error.status, {"error": {"message": str(error)}})
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(prompt, str):
            return Failed(Failure.ENGINE_ERROR, "/apply-template returned no prompt")
        return prompt

    def _release(self, lease: SlotLease) -> None:
        assert self._slots is not None, "a lease comes from a table"
        self._slots.release(lease)


def _model_meta(models: object) -> Mapping[str, object]:
    entries = models.get("data") if isinstance(models, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    meta = first.get("meta") if isinstance(first, dict) else None
    return meta if isinstance(meta, dict) else {}
