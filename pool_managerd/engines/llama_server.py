"""The `llama_server` engine: attaches to a llama.cpp server that somebody else runs. ORCH-3054.

The server should work for this pool alone: other clients may hold a slot that a generation was sent
to, which then waits in the server. Detaching leaves the server as it is.
"""

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from pool_managerd.engines.attachment import LOOK_INTERVAL_MS, Told, until_replaced
from pool_managerd.engines.gguf_file import digest_in_thread, gguf_shortfalls
from pool_managerd.engines.http_client import Endpoint, HttpApiError
from pool_managerd.engines.llama_protocol import LlamaProtocol, ServerFacts
from pool_managerd.engines.llama_wire import extensions, sampler_profile
from pool_managerd.engines.port import EngineInfo, GenerationEvent, GenerationRequest, PreloadError
from pool_managerd.threads import in_thread

_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaServerConfig:
    """A llama-server to attach to.

    Attributes:
        base_url: `http://host:port`, without a path.
        identity: What tells this server from all others where nobody compared its weights; empty:
            its address.
        model_id: Name that jobs ask for; the server itself loads only one model.
        api_key: Bearer token; empty sends none.
        slots: Slots to use; 0 takes all that the server has.
        deterministic: Needs a server with one slot; nothing is taken from the prompt cache.
        model_digest: Digest of the weights, when the operator knows it.
        model_path: The server's model file, if this host can read it: it is then digested.
        kv_type, drafts: Type of its cached keys and values, and whether a draft model proposes
            tokens, as far as is known: its output is that of no other server.
        load_timeout_ms: Longest wait for a server that still loads its model.
        silence_timeout_ms: Longest silence in a stream.
        look_interval_ms: Time between two looks whether it is still the same server.
    """

    base_url: str
    model_id: str
    identity: str = ""
    api_key: str = ""
    slots: int = 0
    deterministic: bool = False
    model_digest: str = ""
    model_path: str = ""
    kv_type: str = "f16"
    drafts: bool = False
    load_timeout_ms: int = 600_000
    silence_timeout_ms: int = 300_000
    look_interval_ms: int = LOOK_INTERVAL_MS

    def __post_init__(self) -> None:
        """Refuses what no server can satisfy."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        if self.slots < 0 or self.load_timeout_ms < 1:
            raise ValueError("slots must not be negative and load_timeout_ms must be at least 1")


class LlamaServerEngine:
    """One attachment to a foreign llama-server; satisfies `port.Engine`."""

    def __init__(self, config: LlamaServerConfig) -> None:
        self._config = config
        self._told: Told = {}
        endpoint = Endpoint(
            base_url=config.base_url,
            api_key=config.api_key,
            silence_timeout_ms=config.silence_timeout_ms,
        )
        self._protocol = LlamaProtocol(
            endpoint, deterministic=config.deterministic, drafts=config.drafts
        )

    async def start(self) -> EngineInfo:
        """Waits until the server has loaded its model. See `port.Engine.start`."""
        self._protocol.open()
        try:
            facts = await self._facts()
            await self._check(facts)
            info = await self._info(facts)
        except BaseException:
            await self._protocol.close()
            raise
        self._told = _told(facts)
        self._protocol.serve(info.slots_total, info.ctx_max)
        return info

    async def _facts(self) -> ServerFacts:
        url = self._config.base_url
        try:
            async with asyncio.timeout(self._config.load_timeout_ms / 1000):
                await self._protocol.wait_ready(_POLL_INTERVAL_S)
                return await self._protocol.facts()
        except TimeoutError:
            wait_ms = self._config.load_timeout_ms
            raise PreloadError(
                [f"{url} is still loading its model after {wait_ms} ms"], passing=True
            ) from None
        except HttpApiError as error:
            raise PreloadError([_explanation(url, error)], passing=error.passing) from error

    async def _check(self, facts: ServerFacts) -> None:
        shortfalls = []
        if self._config.slots > facts.slots_total:
            shortfalls.append(
                f"slots = {self._config.slots}, but the server has {facts.slots_total}"
            )
        if self._config.deterministic and facts.slots_total != 1:
            shortfalls.append(
                f"deterministic = true needs a server with one slot; it has {facts.slots_total}"
            )
        if self._config.model_path:
            shortfalls += await in_thread(
                functools.partial(gguf_shortfalls, Path(self._config.model_path))
            )
        if shortfalls:
            raise PreloadError(shortfalls)

    async def _info(self, facts: ServerFacts) -> EngineInfo:
        return EngineInfo(
            engine="llamacpp",
            engine_version=facts.build or "unknown",
            model_id=self._config.model_id,
            model_digest=await self._digest(facts),
            sampler_profile_version=sampler_profile(
                deterministic=self._config.deterministic,
                kv_type=self._config.kv_type,
                drafts=self._config.drafts,
            ),
            slots_total=self._config.slots or facts.slots_total,
            ctx_max=facts.ctx_per_slot,
            deterministic=self._config.deterministic,
            quantizations=(facts.quantization,) if facts.quantization else (),
            extensions=extensions(drafts=self._config.drafts),
            # How much it took is not told: a foreign server chooses types and layout itself.
            kv_preallocated=True,
        )

    async def _digest(self, facts: ServerFacts) -> str:
        if self._config.model_digest:
            return self._config.model_digest
        if self._config.model_path:
            return await digest_in_thread(Path(self._config.model_path))
        return unverified_digest(self._config.identity or self._config.base_url, facts)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        return self._protocol.generate(request)

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """See `port.Engine.confirm_idle`."""
        await self._protocol.confirm_idle(request_id, timeout_ms)

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        return await self._protocol.healthy()

    async def wait_exit(self) -> str:
        """Returns once the server is another one; nobody here watches a foreign process."""

        async def look() -> Told:
            return _told(await self._protocol.facts())

        return await until_replaced(look, self._told, self._config.look_interval_ms)

    async def stop(self) -> None:
        """Detaches; the server goes on. See `port.Engine.stop`."""
        await self._protocol.close()


def _told(facts: ServerFacts) -> Told:
    return {
        "version": facts.build or None,
        "model": facts.model_file or None,
        "quantization": facts.quantization or None,
        "slots": facts.slots_total,
        "context": facts.ctx_per_slot,
        "size": facts.meta.get("n_params"),
    }


def unverified_digest(identity: str, facts: ServerFacts) -> str:
    """Stands in for the digest of weights that cannot be read: "unverified:" and 64 hex digits.

    It covers which server it is, so two servers whose weights nobody compared are never taken for
    replicas of each other, and what the server says about its model, so a changed model shows.
    """
    described = json.dumps(
        [identity, facts.model_file, facts.quantization, sorted(facts.meta.items())], default=str
    )
    return f"unverified:{hashlib.sha256(described.encode()).hexdigest()}"


def _explanation(url: str, error: HttpApiError) -> str:
    match error.status:
        case 401 | 403:
            return f"{url} refuses the API key"
        case 501:
            return f"{url} does not offer /slots: start llama-server with --slots"
        case 404:
            return f"{url} does not answer like a llama-server"
        case _:
            return f"{url}: {error}"
