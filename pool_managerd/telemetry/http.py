"""The HTTP port for monitors: loopback, read-only, bounded in every direction as orchestratord's.

What it answers is given as routes. Nobody is asked who they are, so a name in `Host` that is not
this machine's is refused: a page of somebody else's site, whose name was rebound to the loopback
address, cannot read from here.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import hdrs, web

from pool_managerd.binding import refusal

CONNECTIONS_MAX = 64
# A connection that is silent for so long is closed, also one whose request never ends.
SILENCE_S = 15.0
# A reader that does not take an answer for so long is cut off.
SEND_S = 10.0
SHUTDOWN_TIMEOUT_S = 1.0
REQUEST_LINE_BYTES_MAX = 2_048
HEADER_BYTES_MAX = 4_096
READ_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}


class HttpPort:
    """Serves routes on one address, between `start` and `stop`."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listen: str, routes: Iterable[web.RouteDef]) -> int:
        """Binds `listen` (HOST:PORT); returns the port. Raises OSError when it cannot."""
        application = web.Application(client_max_size=0, middlewares=[_guard])
        application.router.add_routes(routes)
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            keepalive_timeout=SILENCE_S,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        await runner.setup()
        host, _, port = listen.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _protocol(runner), host.strip("[]"), int(port), backlog=16
            )
        except OSError as error:
            await runner.cleanup()
            raise OSError(refusal("metrics_listen", listen, error)) from error
        self._runner = runner
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Closes the port and what is connected to it. Idempotent."""
        runner, self._runner = self._runner, None
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if runner is not None:
            await runner.cleanup()


async def send(
    request: web.Request,
    body: bytes,
    content_type: str,
    headers: Mapping[str, str] = _NO_SNIFFING,
    status: int = 200,
) -> web.StreamResponse:
    """Answers with `body`; a reader that does not take it within `SEND_S` is cut off."""
    response = web.StreamResponse(status=status, headers={hdrs.SERVER: "pool-managerd", **headers})
    response.headers[hdrs.CONTENT_TYPE] = content_type
    response.content_length = len(body)
    if request.transport is not None:
        # Nothing waits here for a reader once the answer counts as sent.
        request.transport.set_write_buffer_limits(high=0)
    try:
        async with asyncio.timeout(SEND_S):
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await response.write(body)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionResetError:
        # The reader has gone: a monitor whose scrape took too long for it. Nothing is wrong here.
        pass
    return response


def loopback_name(host: str) -> bool:
    """True for what a `Host` header may name: this machine, with or without a port."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    elif host.count(":") > 1:
        name = host
    else:
        name = host.partition(":")[0]
    if name.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not loopback_name(request.headers.get(hdrs.HOST, "")):
        text = "Host must name this machine: use 127.0.0.1, [::1] or localhost\n"
        return web.Response(status=421, text=text, headers=_NO_SNIFFING)
    if request.method not in READ_METHODS:
        raise web.HTTPMethodNotAllowed(request.method, READ_METHODS)
    return await handler(request)


def _protocol(runner: web.AppRunner) -> asyncio.Protocol:
    """Takes a connection up, or hangs up while there are as many as may be."""
    server = runner.server
    assert server is not None, "set up before it listens"
    return _Refused() if len(server.connections) >= CONNECTIONS_MAX else server()


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
