"""A network in memory: the part of grpc.aio that the services and their clients use.

A channel holds one connection at a time, a connection any number of calls. Each direction of a
call is ordered. A connection may break at any message, with or without the other side being told; a
direction may stall: what is sent then arrives when it goes on, or never.
"""

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from faults.simulation.calls import ClientCall, Multi, ServerCall
from faults.simulation.virtual_time import CURRENT, Process

KEEPALIVE_S = 30.0
"""After so long without an answer a transport gives up by itself. Source: channel_options()."""

_RESET_S = 0.002
_EARLIER = 0.5

Call = ServerCall | None
"""What a message belongs to; None: to the connection itself."""

_OUTSIDE = contextvars.Context()
"""Messages under way belong to nobody: they do not die with who sent them."""


class Lane:
    """One direction of a connection. What belongs to one call arrives in order.

    Messages of two calls may overtake each other, and one call may be choked while others pass:
    each has a window of its own for what its reader has not taken.
    """

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._queues: dict[Call, deque[Callable[[], None]]] = {}
        self._last_s: dict[Call, float] = {}
        self._arrived: list[Call] = []
        self._stalled = False
        self._choked: dict[Call, asyncio.Event] = {}

    def send(self, call: Call, deliver: Callable[[], None]) -> None:
        """Delivers after a delay, in order. What belongs to no call comes after everything."""
        loop = asyncio.get_running_loop()
        before_s = self._last_s.get(call, 0.0) if call else max(self._last_s.values(), default=0.0)
        when_s = self._last_s[call] = max(before_s, loop.time() + self._network.delay_s())
        self._queues.setdefault(call, deque()).append(deliver)
        loop.call_at(when_s, self._arrive, call, context=_OUTSIDE)

    def _arrive(self, call: Call) -> None:
        if self._stalled or call in self._choked:
            self._arrived.append(call)
        elif self._queues[call]:
            self._queues[call].popleft()()

    def stall(self) -> None:
        """Holds back what arrives, until `flow`."""
        self._stalled = True

    def flow(self) -> None:
        """Delivers what was held back."""
        self._stalled = False
        self._again()

    def choke(self, call: ServerCall) -> None:
        """Holds back what arrives of one call, and those who write it, until `clear`."""
        self._choked.setdefault(call, asyncio.Event())

    def clear(self, call: Call) -> None:
        """Delivers what was held back of a call, and lets its writer go on."""
        choked = self._choked.pop(call, None)
        if choked is not None:
            choked.set()
            self._again()

    async def room(self, call: ServerCall) -> None:
        """Waits until more of a call may be written."""
        while call in self._choked:
            await self._choked[call].wait()

    def _again(self) -> None:
        arrived, self._arrived = self._arrived, []
        for call in arrived:
            self._arrive(call)

    def drop(self) -> None:
        """Loses everything that is under way."""
        for queue in self._queues.values():
            queue.clear()
        self._arrived.clear()
        for call in list(self._choked):
            self.clear(call)


class Connection:
    """Between a client's and a server's process. Either side may think it open when it is not."""

    def __init__(self, network: "Network", client: Process, server: "Server") -> None:
        self._network = network
        self.client = client
        self.server = server
        self.up = Lane(network)
        self.down = Lane(network)
        self.client_calls: dict[ClientCall, None] = {}
        self.server_calls: dict[ServerCall, None] = {}
        self.client_thinks_open = True
        self.server_thinks_open = True

    def to_server(self, call: Call, deliver: Callable[[], None]) -> None:
        """Sends something up, of a call or of none; the dead send nothing.

        Where the server was started again, nobody knows the connection: that is told at once.
        """
        if not self.client.alive:
            return
        self.up.send(call, deliver)
        if not self.server.process.alive and self._network.replaced(self.server):
            self._network.later(_RESET_S, self.client_notices)

    def to_client(self, call: ServerCall, deliver: Callable[[], None]) -> None:
        """Sends something down; the dead send nothing."""
        if self.server.process.alive:
            self.down.send(call, deliver)

    def copies(self, message: object) -> Sequence[float]:
        """When a message from the server is sent: seconds from now, the first at once."""
        return self._network.copies(message)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """See `Network.later`."""
        self._network.later(delay_s, call)

    @property
    def open(self) -> bool:
        """True while anybody thinks so."""
        return self.client_thinks_open or self.server_thinks_open

    def client_notices(self) -> None:
        """The client's side finds the connection broken."""
        self.client_thinks_open = False
        self.down.drop()
        for call in list(self.client_calls):
            call.broken("the connection was lost")

    def server_notices(self) -> None:
        """The server's side finds the connection broken."""
        self.server_thinks_open = False
        self.up.drop()
        for call in list(self.server_calls):
            call.broken()


class Server:
    """Methods that a process serves. `read` may change a message before its handler gets it."""

    def __init__(
        self,
        process: Process,
        handlers: Sequence[grpc.GenericRpcHandler],
        bugs: list[str],
        read: Callable[[object], None] = lambda _message: None,
    ) -> None:
        self.process = process
        self.bugs = bugs
        self.read = read
        self._handlers = handlers

    def handler(self, method: str) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """What answers a method."""
        for handlers in self._handlers:
            found = handlers.service(_Details(method))
            if found is not None:
                return found
        return None


class _Details(grpc.HandlerCallDetails):
    """What a generic handler looks at."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class Network:
    """All connections. Delays are drawn from `chance`.

    Where an earlier server of an address still runs, some new connections reach that one. `seen` is
    told what clients read and write on their calls.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.slow = 1.0
        self.servers: dict[str, Server] = {}
        self._earlier: dict[str, list[Server]] = {}
        self.connections: list[Connection] = []
        self.refusing: set[str] = set()
        self.bugs: list[str] = []
        self.copies: Callable[[object], Sequence[float]] = lambda _message: (0.0,)
        self.seen: Callable[[Process, ClientCall, object], None] = lambda *_: None

    def delay_s(self) -> float:
        """How long one message takes."""
        return (0.0001 + self._chance.random() * 0.003) * self.slow

    def serve(self, address: str, server: Server) -> None:
        """Takes connections at an address from now on."""
        former = self.servers.get(address)
        if former is not None and former.process.alive:
            self._earlier.setdefault(address, []).append(former)
        self.servers[address] = server

    def _reached(self, target: str) -> Server | None:
        """Who answers at an address now."""
        earlier = [other for other in self._earlier.get(target, ()) if other.process.running]
        if earlier and self._chance.random() < _EARLIER:
            return earlier[-1]
        return self.servers.get(target)

    def replaced(self, server: Server) -> bool:
        """True when another process listens where this server did."""
        return all(other is not server for other in self.servers.values())

    def channel(self, target: str, _options: object = None, **_named: object) -> "Channel":
        """Stands for `grpc.aio.insecure_channel`."""
        process = CURRENT.get()
        assert process is not None, "only processes open channels"
        return Channel(self, process, target)

    def connect(self, client: Process, target: str) -> Connection | None:
        """A new connection; None when it is refused."""
        server = self._reached(target)
        if server is None or not server.process.alive or client.name in self.refusing:
            return None
        self.connections = [connection for connection in self.connections if connection.open]
        connection = Connection(self, client, server)
        self.connections.append(connection)
        return connection

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Does something that belongs to nobody."""
        asyncio.get_running_loop().call_later(delay_s, call, context=_OUTSIDE)

    def cut(self, connection: Connection, client_after_s: float, server_after_s: float) -> None:
        """Breaks a connection; each side finds out after its own time."""
        connection.up.stall()
        connection.down.stall()
        self.later(client_after_s, connection.client_notices)
        self.later(server_after_s, connection.server_notices)

    def died(self, process: Process, notice_s: float) -> None:
        """A process is gone. The others are told after a time, or find out by themselves."""
        for connection in self.connections:
            if connection.client is process:
                connection.client_thinks_open = False
                connection.client_calls.clear()
                self.later(notice_s, connection.server_notices)
            if connection.server.process is process:
                connection.server_thinks_open = False
                connection.server_calls.clear()
                self.later(min(notice_s, KEEPALIVE_S), connection.client_notices)


class Channel:
    """Stands for a `grpc.aio.Channel`."""

    def __init__(self, network: Network, process: Process, target: str) -> None:
        self.network = network
        self.process = process
        self._target = target
        self._connection: Connection | None = None
        self._closed = False

    def connection(self) -> Connection | None:
        """The present connection, or a new one; None when there is none to be had."""
        present = self._connection
        if self._closed or not self.process.alive:
            return None
        if present is None or not present.client_thinks_open:
            self._connection = self.network.connect(self.process, self._target)
        return self._connection

    def unary_unary(self, method: str, **codecs: Any) -> Multi:
        """See `grpc.aio.Channel`."""
        return Multi(self, method, codecs, streams=False)

    def unary_stream(self, method: str, **codecs: Any) -> Multi:
        """See `grpc.aio.Channel`."""
        return Multi(self, method, codecs, streams=False)

    def stream_unary(self, method: str, **codecs: Any) -> Multi:
        """See `grpc.aio.Channel`."""
        return Multi(self, method, codecs, streams=True)

    def stream_stream(self, method: str, **codecs: Any) -> Multi:
        """See `grpc.aio.Channel`."""
        return Multi(self, method, codecs, streams=True)

    async def close(self, _grace: float | None = None) -> None:
        """Ends every call."""
        self._closed = True
        connection = self._connection
        if connection is not None and connection.client_thinks_open:
            for call in list(connection.client_calls):
                call.cancel()
            connection.client_thinks_open = False
            connection.to_server(None, connection.server_notices)

    async def __aenter__(self) -> "Channel":
        """See `grpc.aio.Channel`."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `grpc.aio.Channel`."""
        await self.close()
