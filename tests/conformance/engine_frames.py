"""A server that replays the documented frames of an engine, from `frames/NAME.toml`."""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.ollama import OllamaConfig, OllamaEngine
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.port import Engine

_FOLDER = Path(__file__).parent / "frames"
_FLAVORS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tgi": "tgi",
    "ollama_v1": "ollama",
    "transformers": "transformers",
    "llama_cpp": "llama_cpp",
    "generic": "generic",
}

ADAPTERS = ("llama_server", "ollama", *_FLAVORS)


def frames_of(name: str) -> dict[str, Any]:
    """Returns what `frames/NAME.toml` holds."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def slots_of(name: str) -> int:
    """Returns how many generations the adapter has open at most."""
    return 1 if name == "transformers" else 2


def adapter(name: str, base_url: str, **settings: Any) -> Engine:
    """Returns the adapter for the server, with `slots_of` slots. Further settings are its own."""
    if name == "llama_server":
        return LlamaServerEngine(
            LlamaServerConfig(base_url=base_url, model_id="m", **{"slots": 2, **settings})
        )
    if name == "ollama":
        return OllamaEngine(
            OllamaConfig(base_url=base_url, model_id="m", **{"slots": 2, **settings})
        )
    known = {"flavor": _FLAVORS[name], "slots": slots_of(name), "ctx_max": 512, **settings}
    return OpenAiEngine(OpenAiConfig(base_url=base_url, model_id="m", **known))


@dataclass
class FrameServer:
    """What the server answers, and what it was asked.

    `pages` are the answers at other paths. `chunks` are written one by one as a generation; then
    the answer ends, stays open or is broken off. With `mute`, not even its headers are sent.
    `dropped` is set when a client closes a generation that is not over.
    """

    pages: dict[str, str]
    base_url: str = ""
    status: int = 200
    chunks: Sequence[bytes] = ()
    hangs: bool = False
    breaks: bool = False
    mute: bool = False
    loading_answers: int = 0
    api_key: str = ""
    looked: Callable[[str], None] = lambda path: None
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def frame_server(name: str) -> AsyncIterator[FrameServer]:
    """Serves the frames of `name`; the caller may change the server at any time."""
    frames = frames_of(name)
    server = FrameServer(dict(frames["server"]), chunks=[frames["text"]["frames"].encode()])
    app = web.Application(client_max_size=2**26)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _answer(server, request)

    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as test_server:
        server.base_url = str(test_server.make_url("")).rstrip("/")
        try:
            yield server
        finally:
            server.closing.set()


async def _answer(server: FrameServer, request: web.Request) -> web.StreamResponse:
    server.asked.append(request.path)
    if server.api_key and request.headers.get("Authorization") != f"Bearer {server.api_key}":
        return web.json_response({"error": {"message": "wrong key", "code": 401}}, status=401)
    if server.loading_answers:
        server.loading_answers -= 1
        return web.json_response({"error": {"message": "loading", "code": 503}}, status=503)
    is_load = request.path == "/api/generate" and (await request.json())["stream"] is False
    if is_load:
        return web.json_response({"model": "m", "done": True, "done_reason": "load"})
    page = server.pages.get(request.path)
    if page is not None:
        server.looked(request.path)
        return web.Response(text=page, content_type="text/plain")
    if request.method != "POST":
        return web.json_response({"detail": "Not Found"}, status=404)
    return await _generation(server, request)


async def _generation(server: FrameServer, request: web.Request) -> web.StreamResponse:
    server.bodies.append(await request.json())
    server.headers.append(dict(request.headers))
    server.entered.set()
    try:
        if server.mute:
            await server.closing.wait()
        answer = web.StreamResponse(status=server.status)
        await answer.prepare(request)
        for chunk in server.chunks:
            await answer.write(chunk)
        if server.hangs:
            await server.closing.wait()
    except (asyncio.CancelledError, ConnectionResetError):
        server.dropped.set()
        raise
    if server.breaks and request.transport is not None:
        request.transport.abort()
    return answer
