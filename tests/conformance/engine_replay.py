"""A server that replays documented llama-server frames, cut and broken as a test wishes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MODEL_PATH = "/models/replay.gguf"


def frame(content: str, token: int, predicted: int) -> bytes:
    """Returns a frame with one token, as llama.cpp b11549 sends it."""
    return _line({
        "index": 0,
        "content": content,
        "tokens": [token],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": predicted,
        "tokens_evaluated": 3,
    })  # fmt: skip


def progress() -> bytes:
    """Returns a frame that only tells how far the prompt is; its token id means nothing."""
    told = {"total": 3, "cache": 0, "processed": 3, "time_ms": 1}
    return _line({
        "index": 0, "content": "", "tokens": [0], "stop": False, "id_slot": -1,
        "tokens_predicted": 0, "tokens_evaluated": 3, "prompt_progress": told,
    })  # fmt: skip


def final(stop_type: str = "limit", predicted: int = 2) -> bytes:
    """Returns the last frame, reduced by `response_fields`."""
    timings = {
        "cache_n": 1, "prompt_n": 2, "prompt_ms": 1.6,
        "predicted_n": predicted, "predicted_ms": 20.4,
    }  # fmt: skip
    return _line({
        "content": "", "tokens": [], "stop": True, "stop_type": stop_type, "truncated": False,
        "tokens_predicted": predicted, "tokens_evaluated": 3, "timings": timings, "id_slot": 0,
    })  # fmt: skip


def error(kind: str, message: str, code: int) -> dict[str, object]:
    """Returns an error object."""
    return {"error": {"code": code, "message": message, "type": kind}}


def _line(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


@dataclass
class Replay:
    """What the server answers, and what it was asked.

    `chunks` are written to `/completion` one by one; then the answer ends or stays open.
    `busy_answers` is how often `/slots` still shows busy slots; before that come the answers of
    `busy_script`. With `mute`, not even the headers of a generation are sent.
    """

    base_url: str = ""
    status: int = 200
    chunks: Sequence[bytes] = (progress(), frame(" a", 1, 1), frame(" b", 2, 2), final())
    hangs: bool = False
    mute: bool = False
    busy_answers: int = 0
    busy_script: list[bool] = field(default_factory=list)
    loading_answers: int = 0
    slots_status: int = 200
    slots_total: int = 2
    api_key: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def replay_server() -> AsyncIterator[Replay]:
    """Serves a `Replay` that the caller may change at any time."""
    replay = Replay()
    routes = _Routes(replay)
    app = web.Application(middlewares=[routes.authorised], client_max_size=2**26)
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.get("/props", routes.props),
            web.get("/slots", routes.slots),
            web.get("/v1/models", routes.models),
            web.post("/apply-template", routes.apply_template),
            web.post("/completion", routes.completion),
        ]
    )
    async with TestServer(app) as server:
        replay.base_url = str(server.make_url("")).rstrip("/")
        yield replay
        replay.closing.set()


class _Routes:
    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @web.middleware
    async def authorised(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = f"Bearer {self._replay.api_key}" if self._replay.api_key else None
        open_to_all = request.path == "/health"
        if wanted and not open_to_all and request.headers.get("Authorization") != wanted:
            return _refusal(error("authentication_error", "Invalid API Key", 401))
        return await handler(request)

    async def health(self, _: web.Request) -> web.Response:
        if self._replay.loading_answers:
            self._replay.loading_answers -= 1
            return _refusal(error("unavailable_error", "Loading model", 503))
        return web.json_response({"status": "ok"})

    async def props(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "total_slots": self._replay.slots_total,
                "model_path": MODEL_PATH,
                "model_ftype": "Q4_K_M",
                "build_info": "b11549-replay",
            }
        )

    async def slots(self, _: web.Request) -> web.Response:
        if self._replay.slots_status != 200:
            answer = error("not_supported_error", "no slots", self._replay.slots_status)
            return _refusal(answer)
        if self._replay.busy_script:
            busy = self._replay.busy_script.pop(0)
        else:
            busy = self._replay.busy_answers > 0
            self._replay.busy_answers -= busy
        entries = [
            {"id": number, "n_ctx": 512, "is_processing": busy}
            for number in range(self._replay.slots_total)
        ]
        return web.json_response(entries)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "x", "meta": {"n_params": 7, "n_vocab": 9}}]})

    async def apply_template(self, request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in messages)
        return web.json_response({"prompt": turns})

    async def completion(self, request: web.Request) -> web.StreamResponse:
        self._replay.bodies.append(await request.json())
        self._replay.headers.append(dict(request.headers))
        self._replay.asked.set()
        if self._replay.mute:
            await self._replay.closing.wait()
        answer = web.StreamResponse(status=self._replay.status)
        await answer.prepare(request)
        for chunk in self._replay.chunks:
            await answer.write(chunk)
        if self._replay.hangs:
            await self._replay.closing.wait()
        return answer


def _refusal(body: dict[str, object]) -> web.Response:
    status = body["error"]["code"]  # type: ignore[index]
    return web.json_response(body, status=status)
