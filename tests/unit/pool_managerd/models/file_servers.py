"""A server of one file that breaks in every way a test asks for, and a stand-in of the Hub."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class FileServer:
    """Serves `content` at every path.

    After `cut_after` bytes, and once the client says that it `got_some`, the connection breaks
    (once); `etag` and `ranges` say what it offers, `careless` that it looks at no If-Range;
    `status` answers instead, `redirect` sends elsewhere, `stall` sends the first bytes and no more.
    `seen` are the requests.
    """

    content: bytes = b"GGUF" + bytes(range(256)) * 1_000
    etag: str = '"one"'
    ranges: bool = True
    careless: bool = False
    cut_after: int | None = None
    chunked: bool = False
    status: list[int] = field(default_factory=list)
    redirect: str = ""
    stall: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[web.Request] = field(default_factory=list)
    url: str = ""
    got_some: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.seen.append(request)
        if self.status:
            return web.Response(status=self.status.pop(0))
        if self.redirect:
            location, self.redirect = self.redirect, ""
            return web.Response(status=302, headers={"Location": location, **self.headers})
        return await self._send(request)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        begin, wanted = 0, request.headers.get("Range", "")
        same = self.careless or request.headers.get("If-Range") == self.etag
        if self.ranges and wanted and same:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = self.content[begin:]
        answer = web.StreamResponse(status=206 if begin else 200, headers=dict(self.headers))
        if self.etag:
            answer.headers["ETag"] = self.etag
        if begin:
            total = len(self.content)
            answer.headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        if not self.chunked:
            answer.content_length = len(body)
        await answer.prepare(request)
        if self.stall:
            await answer.write(body[:1_000])
            await asyncio.Event().wait()
        if self.cut_after is not None:
            await answer.write(body[: self.cut_after])
            self.cut_after = None
            await self.got_some.wait()
            assert request.transport is not None
            request.transport.close()
            return answer
        await answer.write(body)
        return answer


@asynccontextmanager
async def serving(server: FileServer) -> AsyncGenerator[FileServer, None]:
    """The server, with its address in `url`."""
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", server.answer)
    async with TestServer(app, host="127.0.0.1", shutdown_timeout=0) as running:
        server.url = str(running.make_url("/")).rstrip("/")
        yield server
