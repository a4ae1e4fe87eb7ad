"""The `ollama` engine: attaches to an Ollama server by its native API. ORCH-3054.

The start loads the model and keeps it loaded. A cancel closes the connection; Ollama shows nothing
by which it could be verified. Detaching leaves the model loaded for as long as `keep_alive` says.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pool_managerd.engines.attachment import LOOK_INTERVAL_MS, Told, until_replaced
from pool_managerd.engines.http_client import Endpoint, HttpApiError, HttpClient
from pool_managerd.engines.ollama_wire import (
    EXTENSIONS,
    SAMPLER_PROFILE,
    LineReader,
    load_body,
    ollama_error,
    path_for,
    request_body,
)
from pool_managerd.engines.open_generations import OpenGenerations
from pool_managerd.engines.port import (
    EngineInfo,
    Failed,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.engines.stream_lines import Json

_VERSION_PATH = "/api/version"
_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaConfig:
    """A model of an Ollama server.

    Attributes:
        base_url: `http://host:port`, usually port 11434.
        model_id: Name that jobs ask for.
        ollama_model: Ollama's name of the model, e.g. `llama3.2:3b`; empty: the same.
        api_key: Bearer token for a proxy before it; empty sends none.
        slots: Generations at a time; the server's OLLAMA_NUM_PARALLEL must allow them.
        ctx_max: Context of a generation, tokens: Ollama's `num_ctx`.
        keep_alive: How long the model stays loaded, in Ollama's words; "-1" means for good.
        load_timeout_ms: Longest wait for the model.
        silence_timeout_ms: Longest silence in a stream.
        look_interval_ms: Time between two looks whether it is still the same server.
    """

    base_url: str
    model_id: str
    ollama_model: str = ""
    api_key: str = ""
    slots: int = 1
    ctx_max: int = 4096
    keep_alive: str = "-1"
    load_timeout_ms: int = 600_000
    silence_timeout_ms: int = 300_000
    look_interval_ms: int = LOOK_INTERVAL_MS

    def __post_init__(self) -> None:
        """Refuses what no server can satisfy."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        if min(self.slots, self.ctx_max, self.load_timeout_ms) < 1:
            raise ValueError("slots, ctx_max and load_timeout_ms must be at least 1")


class OllamaEngine:
    """One attachment to an Ollama server; satisfies `port.Engine`."""

    def __init__(self, config: OllamaConfig) -> None:
        self._config = config
        self._told: Told = {}
        self._model = config.ollama_model or config.model_id
        # A bare number is seconds, and only as a number; a duration such as "5m" is text.
        bare = config.keep_alive.lstrip("-").isdigit()
        self._keep_alive: str | int = int(config.keep_alive) if bare else config.keep_alive
        endpoint = Endpoint(
            base_url=config.base_url,
            api_key=config.api_key,
            silence_timeout_ms=config.silence_timeout_ms,
        )
        self._http = HttpClient(endpoint, lambda status, body: ollama_error(status, body).message)
        self._open = OpenGenerations(config.slots)

    async def start(self) -> EngineInfo:
        """Loads the model. See `port.Engine.start`."""
        self._http.open()
        url, config = self._config.base_url, self._config
        try:
            async with asyncio.timeout(config.load_timeout_ms / 1000):
                await self._http.wait_ready(_VERSION_PATH, _POLL_INTERVAL_S)
                version = await self._http.call("GET", _VERSION_PATH)
                entry = await self._model_entry()
                await self._load()
        except TimeoutError:
            await self._http.close()
            wait_ms = config.load_timeout_ms
            raise PreloadError(
                [f"{url} is still loading its model after {wait_ms} ms"], passing=True
            ) from None
        except HttpApiError as error:
            await self._http.close()
            refused = error.status in {401, 403}
            raise PreloadError(
                [f"{url} refuses the API key" if refused else f"{url}: {error}"],
                passing=error.passing,
            ) from error
        except BaseException:
            await self._http.close()
            raise
        self._told = _told(version, entry)
        return self._info(version, entry)

    async def _model_entry(self) -> Json:
        answer = await self._http.call("GET", "/api/tags")
        models = answer.get("models") if isinstance(answer, dict) else None
        wanted = self._model if ":" in self._model else f"{self._model}:latest"
        for entry in models if isinstance(models, list) else []:
            if isinstance(entry, dict) and entry.get("name") == wanted:
                return entry
        raise PreloadError(
            [f"{self._config.base_url} has no model {wanted!r}: run `ollama pull {wanted}`"]
        )

    async def _load(self) -> None:
        body = load_body(self._model, self._config.ctx_max, self._keep_alive)
        timeout_ms = self._config.load_timeout_ms
        await self._http.text("POST", "/api/generate", body, timeout_ms=timeout_ms)
        await self._check_context()

    async def _check_context(self) -> None:
        """Ollama lowers a context that does not fit, and only `/api/ps` says so."""
        answer = await self._http.call("GET", "/api/ps")
        models = answer.get("models") if isinstance(answer, dict) else None
        wanted = self._model if ":" in self._model else f"{self._model}:latest"
        for entry in models if isinstance(models, list) else []:
            if not isinstance(entry, dict) or entry.get("name") != wanted:
                continue
            length = entry.get("context_length")
            if isinstance(length, int) and 0 < length < self._config.ctx_max:
                raise PreloadError(
                    [f"ctx_max = {self._config.ctx_max}, but ollama gives {wanted} {length}"]
                )

    def _info(self, version: object, entry: Json) -> EngineInfo:
        details = entry.get("details")
        quantization = details.get("quantization_level") if isinstance(details, dict) else None
        told = version.get("version") if isinstance(version, dict) else None
        return EngineInfo(
            engine="ollama",
            engine_version=str(told or "unknown"),
            model_id=self._config.model_id,
            model_digest=f"ollama-manifest:{entry.get('digest')}",
            sampler_profile_version=SAMPLER_PROFILE,
            slots_total=self._config.slots,
            ctx_max=self._config.ctx_max,
            quantizations=(str(quantization),) if quantization else (),
            extensions=EXTENSIONS,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        body = request_body(self._model, request, self._config.ctx_max, self._keep_alive)
        if isinstance(body, Failed):
            yield body
            return
        reader = LineReader(request)
        stream = self._open.stream(self._http, path_for(request), body, request, reader)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                yield event

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns at once: Ollama shows nothing to wait for. See `port.Engine.confirm_idle`."""
        self._open.release(request_id)

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        return await self._http.healthy(_VERSION_PATH)

    async def wait_exit(self) -> str:
        """Returns once the server, or the model, is another one; see `until_replaced`."""

        async def look() -> Told:
            version = await self._http.call("GET", _VERSION_PATH)
            return _told(version, await self._model_entry())

        return await until_replaced(look, self._told, self._config.look_interval_ms)

    async def stop(self) -> None:
        """Detaches; the server goes on. See `port.Engine.stop`."""
        await self._http.close()


def _told(version: object, entry: Json) -> Told:
    told = version.get("version") if isinstance(version, dict) else None
    return {"version": told, "weights": entry.get("digest")}
