"""Serves the page, its parts and its two JSON documents. Read-only, and nothing from elsewhere.

The page asks again every second. There is no stream: between two questions nothing is kept for a
reader, so a slow or absent one costs nothing. However many ask, the state is read at most once a
second, and explanations are made one at a time.
"""

import asyncio
import mimetypes
import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from importlib.resources import files

import msgspec
from aiohttp import hdrs, web

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.status.explaining import explanation
from orchestrator_core.status.model import Status
from orchestrator_core.telemetry.http import Handler, send

READ_EVERY_S = 1.0
EXPLAINING_MAX = 4
JOB_ID_CHARS_MAX = 256
FILES = (
    "index.html",
    "status.css",
    "status.js",
    "explain.js",
    "picture.js",
    "format.js",
    "icon.svg",
)
JSON = "application/json"
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# What a browser says of a request that the page itself made, or the person at its address bar.
# Source: W3C Fetch Metadata, section 2.4.
_OWN_SITES = frozenset({"same-origin", "none"})

Read = Callable[[], Awaitable[Status]]
Explain = Callable[[str], Awaitable[pb.ExplainJobResponse]]


class StatusPage:
    """The routes of the page.

    `read` tells the present state, `explain` answers for one job and may raise `RefusalError`.
    `clock` counts seconds.
    """

    def __init__(
        self, read: Read, explain: Explain, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._explain = explain
        self._clock = clock
        self._explaining = 0
        self._turn = asyncio.Lock()
        self._read_s = float("-inf")
        self._body = b""

    def routes(self) -> list[web.RouteDef]:
        """What to serve, with `/` as the page."""
        static = [web.get(f"/status/{name}", _static(name)) for name in FILES[1:]]
        return [
            web.get("/", _static(FILES[0])),
            web.get("/status/now.json", self._now),
            web.get("/status/job.json", self._job),
            *static,
        ]

    async def _now(self, request: web.Request) -> web.StreamResponse:
        _only_from_here(request)
        return await _answer(request, await self._latest())

    async def _latest(self) -> bytes:
        async with self._turn:
            now_s = self._clock()
            if now_s - self._read_s >= READ_EVERY_S:
                self._body = msgspec.json.encode(await self._read())
                self._read_s = now_s
            return self._body

    async def _job(self, request: web.Request) -> web.StreamResponse:
        _only_from_here(request)
        job_id = request.query.get("id", "")
        if not 0 < len(job_id) <= JOB_ID_CHARS_MAX:
            return await _problem(request, 400, "give one job: /status/job.json?id=JOB")
        if self._explaining >= EXPLAINING_MAX:
            return await _problem(request, 503, "too many explanations at once: try again")
        self._explaining += 1
        try:
            answer = await self._explain(job_id)
        except RefusalError as error:
            unknown = error.refusal.reason is Reason.NOT_FOUND
            return await _problem(request, 404 if unknown else 503, error.refusal.message)
        finally:
            self._explaining -= 1
        return await _answer(request, msgspec.json.encode(explanation(answer)))


def _static(name: str) -> Handler:
    body = files(__package__).joinpath("static", name).read_bytes()
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    content_type = kind if kind.startswith("image/") else f"{kind}; charset=utf-8"
    etag = f'"{sha256(body).hexdigest()[:16]}"'
    headers = {**HEADERS, hdrs.CACHE_CONTROL: "no-cache", hdrs.ETAG: etag}

    async def serve(request: web.Request) -> web.StreamResponse:
        if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
            return web.Response(status=304, headers=headers)
        return await send(request, body, content_type, headers)

    return serve


def _only_from_here(request: web.Request) -> None:
    """Refuses what a page of another site asks for in the background: it costs work here."""
    if request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES:
        raise web.HTTPForbidden(text="for the status page itself\n", headers=HEADERS)


async def _answer(request: web.Request, body: bytes, status: int = 200) -> web.StreamResponse:
    return await send(request, body, JSON, HEADERS, status)


async def _problem(request: web.Request, status: int, text: str) -> web.StreamResponse:
    return await _answer(request, msgspec.json.encode({"problem": text}), status)
