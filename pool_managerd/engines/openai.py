"""The `openai` engine: attaches to a server that speaks OpenAI's API. ORCH-3055.

The `flavor` says what the server supports; see `openai_flavors.py`. The server should work for this
pool alone: a cancel is verified by comparing what it works on with what is open here. Detaching
leaves the server as it is.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from pool_managerd.engines.attachment import LOOK_INTERVAL_MS, Told, until_replaced
from pool_managerd.engines.http_client import Endpoint, HttpApiError, HttpClient
from pool_managerd.engines.idle_check import IdleCheck
from pool_managerd.engines.open_generations import OpenGenerations
from pool_managerd.engines.openai_flavors import FLAVORS, Fact, Flavor, FlavorName
from pool_managerd.engines.openai_wire import ChunkReader, openai_error, path_for, request_body
from pool_managerd.engines.port import (
    COUNT_32_MAX,
    CancelUnconfirmedError,
    EngineInfo,
    Failed,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.engines.stream_lines import Json

_POLL_INTERVAL_S = 0.1
_MODELS_PATH = "/v1/models"
_NOT_FOUND = 404
_DESCRIBING_KEYS = ("id", "root", "max_model_len", "meta", "owned_by")
# Of a model that sleeps, llama.cpp leaves the rest out.
_NAMING_KEYS = ("id", "root", "max_model_len")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiConfig:
    """A server to attach to.

    Attributes:
        base_url: `http://host:port`, without `/v1`.
        identity: What tells this server from all others where nobody compared its weights; empty:
            its address.
        flavor: What kind of server it is.
        model_id: Name that jobs ask for.
        served_model: Name that the server gives the model; empty: the same.
        api_key: Bearer token; empty sends none.
        slots: Generations at a time; 0 takes what the server says, where it says it.
        ctx_max: Context of a generation in tokens; 0 takes what the server says.
        deterministic: Equal seeds give equal bytes; see the flavor for what that needs.
        engine_version: Used where the server does not tell its own.
        model_digest: Digest of the weights, when the operator knows it.
        kv_type, drafts: Of a launched llama.cpp: type of its cached keys and values, and whether a
            draft model proposes tokens. Its output is that of no other server.
        load_timeout_ms: Longest wait for a server that still loads its model.
        silence_timeout_ms: Longest silence in a stream.
        look_interval_ms: Time between two looks whether it is still the same server.
    """

    base_url: str
    flavor: FlavorName
    model_id: str
    identity: str = ""
    served_model: str = ""
    api_key: str = ""
    slots: int = 0
    ctx_max: int = 0
    deterministic: bool = False
    engine_version: str = ""
    model_digest: str = ""
    kv_type: str = "f16"
    drafts: bool = False
    load_timeout_ms: int = 600_000
    silence_timeout_ms: int = 300_000
    look_interval_ms: int = LOOK_INTERVAL_MS

    def __post_init__(self) -> None:
        """Refuses what no server can satisfy."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        if min(self.slots, self.ctx_max) < 0 or self.load_timeout_ms < 1:
            raise ValueError("slots and ctx_max must not be negative, load_timeout_ms at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the server says about itself; None where it does not."""

    version: str
    entry: Json | None
    context: int | None
    slots: int | None
    deterministic: bool

    @property
    def facts(self) -> Told:
        """What makes it the server that it is."""
        return {
            "version": self.version or None,
            "model": _said(self.entry, _NAMING_KEYS) or None,
            "context": self.context,
            "slots": self.slots,
        }


class OpenAiEngine:
    """One attachment to a foreign server; satisfies `port.Engine`."""

    def __init__(self, config: OpenAiConfig) -> None:
        self._config = config
        self._flavor: Flavor = FLAVORS[config.flavor]
        if config.drafts:
            # llama.cpp tells none of the tokens that were drafted.
            self._flavor = replace(self._flavor, logprobs=False)
        self._model = config.served_model or config.model_id
        endpoint = Endpoint(
            base_url=config.base_url,
            api_key=config.api_key,
            silence_timeout_ms=config.silence_timeout_ms,
        )
        self._http = HttpClient(
            endpoint, lambda status, body: openai_error(self._flavor, status, body).message
        )
        self._open: OpenGenerations | None = None
        self._idle: IdleCheck | None = None
        self._told: Told = {}

    async def start(self) -> EngineInfo:
        """Waits until the server has loaded its model. See `port.Engine.start`."""
        self._http.open()
        try:
            told = await self._ask()
            self._check(told)
            self._idle = await self._idle_check()
        except BaseException:
            await self._http.close()
            raise
        info = self._info(told)
        self._told = told.facts
        self._open = OpenGenerations(info.slots_total)
        return info

    async def _ask(self) -> _Told:
        url, flavor = self._config.base_url, self._flavor
        try:
            async with asyncio.timeout(self._config.load_timeout_ms / 1000):
                await self._http.wait_ready(flavor.health, _POLL_INTERVAL_S)
                entry = await self._model_entry()
                pages: dict[str, object] = {"": entry}
                for fact in (
                    flavor.version, flavor.context, flavor.slots, flavor.deterministic_fact
                ):  # fmt: skip
                    if fact is not None and fact.path not in pages:
                        pages[fact.path] = await self._page(fact)
        except TimeoutError:
            wait_ms = self._config.load_timeout_ms
            raise PreloadError(
                [f"{url} is still loading its model after {wait_ms} ms"], passing=True
            ) from None
        except HttpApiError as error:
            raise PreloadError([_explanation(url, flavor, error)], passing=error.passing) from error
        return _Told(
            version=_text(_found(pages, flavor.version)),
            entry=entry,
            context=_count(_found(pages, flavor.context)),
            slots=_count(_found(pages, flavor.slots)),
            deterministic=_found(pages, flavor.deterministic_fact) is True,
        )

    async def _page(self, fact: Fact) -> object:
        try:
            return await self._http.call("GET", fact.path)
        except HttpApiError as error:
            if error.status != _NOT_FOUND or not fact.older:
                raise
            return await self._http.call("GET", fact.older)

    async def _model_entry(self) -> Json | None:
        """Returns what the server says about its model; None when it does not list it.

        llama.cpp serves its one model under any name.
        """
        answer = await self._http.call("GET", _MODELS_PATH)
        data = answer.get("data") if isinstance(answer, dict) else None
        listed = data if isinstance(data, list) else []
        entries = [entry for entry in listed if isinstance(entry, dict)]
        names = (self._model, f"{self._model}:latest")
        found = next((entry for entry in entries if entry.get("id") in names), None)
        if found is None and self._flavor.lists_model and not self._flavor.serves_any_name:
            served = ", ".join(sorted(str(entry.get("id")) for entry in entries)[:10]) or "none"
            raise PreloadError(
                [f"{self._config.base_url} does not serve {self._model!r}; it serves {served}"]
            )
        return found or (entries[0] if entries and self._flavor.serves_any_name else None)

    def _check(self, told: _Told) -> None:
        config, flavor, shortfalls = self._config, self._flavor, list[str]()
        if not config.slots and not (told.slots and flavor.slots_exact):
            shortfalls.append(f"slots must be set: {flavor.engine} does not tell how many it has")
        if told.slots and config.slots > told.slots:
            shortfalls.append(f"slots = {config.slots}, but the server has {told.slots}")
        if flavor.slots_max and config.slots > flavor.slots_max:
            shortfalls.append(f"slots = {config.slots}, but {flavor.engine} runs one at a time")
        if not config.ctx_max and not told.context:
            shortfalls.append(f"ctx_max must be set: {flavor.engine} does not tell its context")
        if told.context and config.ctx_max > told.context:
            shortfalls.append(f"ctx_max = {config.ctx_max}, but the server has {told.context}")
        if config.deterministic:
            shortfalls += self._determinism_shortfalls(told)
        if shortfalls:
            raise PreloadError(shortfalls)

    def _determinism_shortfalls(self, told: _Told) -> list[str]:
        slots = self._config.slots or told.slots or 0
        match self._flavor.determinism:
            case "never":
                return [f"deterministic = true: {self._flavor.engine} cannot promise equal bytes"]
            case "one_slot" if slots != 1 or (told.slots or 1) != 1:
                return ["deterministic = true needs slots = 1 and a server with one slot"]
            case "told" if not told.deterministic:
                hint = self._flavor.deterministic_hint
                return [f"deterministic = true needs a server that was started with {hint}"]
            case _:
                return []

    async def _idle_check(self) -> IdleCheck | None:
        if self._flavor.idle is None:
            return None
        check = IdleCheck(self._http, self._flavor.idle)
        return check if await check.is_shown() else None

    def _info(self, told: _Told) -> EngineInfo:
        config, flavor = self._config, self._flavor
        profile = "deterministic-1" if config.deterministic else "1"
        profile += "" if config.kv_type == "f16" else f"-kv-{config.kv_type}"
        profile += "-draft" if config.drafts else ""
        return EngineInfo(
            engine=flavor.engine,
            engine_version=told.version or config.engine_version or "unknown",
            model_id=config.model_id,
            model_digest=config.model_digest or self._unverified_digest(told.entry),
            sampler_profile_version=f"openai-{config.flavor}-{profile}",
            slots_total=config.slots or told.slots or 1,
            ctx_max=config.ctx_max or told.context or 1,
            deterministic=config.deterministic,
            extensions=_extensions(flavor),
        )

    def _unverified_digest(self, entry: Json | None) -> str:
        """Stands in for the digest of weights that cannot be read.

        It covers which server it is, so two servers whose weights nobody compared are never taken
        for replicas of each other, and what the server says about its model.
        """
        identity = self._config.identity or self._config.base_url
        described = json.dumps(
            [identity, self._model, _said(entry, _DESCRIBING_KEYS)], sort_keys=True
        )
        return f"unverified:{hashlib.sha256(described.encode()).hexdigest()}"

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        assert self._open is not None, "start() comes first"
        body = request_body(
            self._flavor, self._model, request, deterministic=self._config.deterministic
        )
        if isinstance(body, Failed):
            yield body
            return
        reader = ChunkReader(self._flavor, request)
        stream = self._open.stream(self._http, path_for(request), body, request, reader)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                yield event

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns once the server shows that it stopped, or at once where it shows nothing.

        See `port.Engine.confirm_idle`.
        """
        open_here = self._open
        progress = open_here.progress_of(request_id) if open_here else None
        if open_here is None or progress is None:
            return
        if self._idle is not None:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    await self._idle.wait(lambda: open_here.running, answered=progress.answered)
            except TimeoutError:
                raise CancelUnconfirmedError(
                    f"the server still works on it {timeout_ms} ms after the cancel"
                ) from None
        open_here.release(request_id)

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        return await self._http.healthy(self._flavor.health)

    async def wait_exit(self) -> str:
        """Returns once the server is another one; nobody here watches a foreign process."""

        async def look() -> Told:
            return (await self._ask()).facts

        return await until_replaced(look, self._told, self._config.look_interval_ms)

    async def stop(self) -> None:
        """Detaches; the server goes on. See `port.Engine.stop`."""
        await self._http.close()


def _said(entry: Json | None, keys: tuple[str, ...]) -> Json:
    return {key: entry[key] for key in keys if entry and key in entry}


def _extensions(flavor: Flavor) -> tuple[str, ...]:
    offers = {
        "chat_template": True,
        "grammar": flavor.grammar is not None,
        "json_schema": flavor.schema_text is not None and flavor.schema_chat is not None,
        "logprobs": flavor.logprobs,
        "token_ids": bool(flavor.ids_field),
    }
    return tuple(name for name, offered in offers.items() if offered)


def _found(pages: dict[str, object], fact: Fact | None) -> object:
    """Follows the keys of a fact; None when there is nothing."""
    if fact is None:
        return None
    value = pages.get(fact.path)
    for key in fact.keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _count(value: object) -> int | None:
    """A count that can be: some servers tell 10^30 where there is no limit."""
    return value if isinstance(value, int) and 0 < value <= COUNT_32_MAX else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _explanation(url: str, flavor: Flavor, error: HttpApiError) -> str:
    match error.status:
        case 401 | 403:
            return f"{url} refuses the API key"
        case 404:
            return f"{url} does not answer like a server of the flavor {flavor.engine}"
        case _:
            return f"{url}: {error}"
