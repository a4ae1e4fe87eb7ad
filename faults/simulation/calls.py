"""Both ends of one call, as grpc.aio shows them. Messages pass as bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc import aio

if TYPE_CHECKING:
    from faults.simulation.network import Channel, Connection
from faults.simulation.inbox import Inbox

OK = grpc.StatusCode.OK
Pairs = Sequence[tuple[str, str | bytes]]
_CONNECT_S = 0.02
_FINISHED = "RPC already finished."


class Multi:
    """Stands for the multi-callables of grpc.aio."""

    def __init__(
        self, channel: "Channel", method: str, codecs: dict[str, Any], *, streams: bool
    ) -> None:
        self._channel = channel
        self._method = method
        self._codecs = codecs
        self._streams = streams

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Pairs = (),
        **_: object,
    ) -> "ClientCall":
        """Begins a call."""
        call = ClientCall(self._channel, self._method, self._codecs, tuple(metadata))
        call.begin(None if self._streams else request, half_close=not self._streams)
        if timeout is not None:
            call.limit(timeout)
        return call


class ClientCall:
    """The client's end of a call."""

    def __init__(
        self, channel: "Channel", method: str, codecs: dict[str, Any], metadata: Pairs
    ) -> None:
        self._channel = channel
        self._method = method
        self._encode = codecs["request_serializer"]
        self._decode = codecs["response_deserializer"]
        self._metadata = metadata
        self._connection: Connection | None = None
        self._server: ServerCall | None = None
        self._inbox = Inbox()
        self._initial: asyncio.Future[Pairs] = asyncio.get_running_loop().create_future()
        self._status: tuple[grpc.StatusCode, str, Pairs] | None = None
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self._when_done: list[Callable[[ClientCall], None]] = []

    def begin(self, request: Any, *, half_close: bool) -> None:
        """Connects if need be, and sends what opens the call."""
        connection = self._connection = self._channel.connection()
        loop = asyncio.get_running_loop()
        if connection is None:
            loop.call_later(_CONNECT_S, self.broken, "connection refused")
            return
        connection.client_calls[self] = None
        server = self._server = ServerCall(self, connection, self._method, self._metadata)
        connection.to_server(server, server.opened)
        if request is not None:
            data = self._encode(request)
            connection.to_server(server, lambda: server.inbox.put(data))
        if half_close:
            connection.to_server(server, server.inbox.end)

    def limit(self, timeout_s: float) -> None:
        """Gives up after a time."""
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._late)

    def _late(self) -> None:
        if self._status is None:
            self._tell_cancel()
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())

    # --- what arrives

    def got_initial(self, metadata: Pairs) -> None:
        """The server's first metadata."""
        if not self._initial.done():
            self._initial.set_result(metadata)

    def got(self, data: bytes) -> None:
        """A message."""
        if self._status is None:
            self._inbox.put(data)

    def finish(self, code: grpc.StatusCode, details: str, trailing: Pairs) -> None:
        """The status: nothing follows."""
        if self._status is not None:
            return
        self._status = (code, details, trailing)
        self._close()
        self._inbox.end()

    def broken(self, details: str) -> None:
        """The connection is lost: what was not read yet is lost too."""
        if self._status is None:
            self._status = (grpc.StatusCode.UNAVAILABLE, details, ())
            self._close()
            self._inbox.fail()

    def _close(self) -> None:
        self.got_initial(())
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.client_calls.pop(self, None)
        if self._connection is not None and self._server is not None:
            # Who writes must learn of it.
            self._connection.up.clear(self._server)
        callbacks, self._when_done = self._when_done, []
        for callback in callbacks:
            callback(self)

    # --- what grpc.aio offers

    def add_done_callback(self, callback: "Callable[[ClientCall], None]") -> None:
        """Calls back once the call is over."""
        self._when_done.append(callback)

    async def code(self) -> grpc.StatusCode:
        """The status of a call that is over."""
        assert self._status is not None, "asked of a call that is over"
        return self._status[0]

    async def details(self) -> str:
        """What came with it."""
        assert self._status is not None, "asked of a call that is over"
        return self._status[1]

    def __await__(self) -> Generator[Any, None, Any]:
        """The response of a unary call."""
        return self._response().__await__()

    async def _response(self) -> Any:
        data = await self._next()
        # The status follows the message; only then the call is over.
        end = await self._next() if data is not None else None
        if end is not None or self._status is None:
            raise AssertionError("a unary call has one response")
        self._raise_for_status()
        assert data is not None, "an OK status follows a response"
        return self._decode(data)

    async def _next(self) -> bytes | None:
        try:
            return await self._inbox.get()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise_for_status(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError
        assert self._status is not None, "the call is over"
        code, details, trailing = self._status
        if code is not OK:
            initial = self._initial.result() if self._initial.done() else ()
            raise aio.AioRpcError(code, aio.Metadata(*initial), aio.Metadata(*trailing), details)

    async def initial_metadata(self) -> Pairs:
        """The server's first metadata."""
        return await asyncio.shield(self._initial)

    def cancel(self) -> bool:
        """Ends the call; whoever reads is cancelled."""
        if self._status is not None:
            return False
        self._cancelled = True
        self._tell_cancel()
        self._status = (grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ())
        self._close()
        self._inbox.cancel()
        return True

    def _tell_cancel(self) -> None:
        if self._connection is not None and self._server is not None:
            self._connection.to_server(self._server, self._server.broken)

    def done(self) -> bool:
        """True when the call is over."""
        return self._status is not None

    async def read(self) -> Any:
        """The next message, or EOF."""
        data = await self._next()
        if data is not None:
            message = self._decode(data)
            self._channel.network.seen(self._channel.process, self, message)
            return message
        self._raise_for_status()
        return aio.EOF

    def __aiter__(self) -> AsyncIterator[Any]:
        """The messages."""
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not aio.EOF:
            yield message

    async def write(self, message: Any) -> None:
        """Sends a message."""
        if self._status is not None:
            raise asyncio.InvalidStateError(_FINISHED)
        if self._connection is None or self._server is None:
            # Not connected: gRPC holds the message until the call fails.
            await asyncio.shield(self._initial)
            self._raise_for_status()
            return
        data, inbox = self._encode(message), self._server.inbox
        self._connection.to_server(self._server, lambda: inbox.put(data))
        self._channel.network.seen(self._channel.process, self, message)
        try:
            await asyncio.sleep(0)
            await self._connection.up.room(self._server)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def done_writing(self) -> None:
        """Closes this direction."""
        if self._connection is not None and self._server is not None:
            self._connection.to_server(self._server, self._server.inbox.end)


class ServerCall:
    """The server's end of a call: what a handler gets as its context."""

    def __init__(
        self, client: ClientCall, connection: "Connection", method: str, metadata: Pairs
    ) -> None:
        self.inbox = Inbox()
        self._client = client
        self.connection = connection
        self.method = method
        self._metadata = metadata
        self._trailing: Pairs = ()
        self._code = OK
        self._handler: Any = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._when_done: list[Callable[[ServerCall], None]] = []

    def opened(self) -> None:
        """The call arrives: its handler begins."""
        server = self.connection.server
        if not server.process.alive or not self.connection.server_thinks_open:
            return
        self._handler = server.handler(self.method)
        if self._handler is None:
            self._finish(grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ())
            return
        self.connection.server_calls[self] = None
        self._task = server.process.spawn(self._serve())

    def broken(self) -> None:
        """The client is gone, or does not want it any more."""
        self._close()
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        try:
            await self._answer()
        except aio.AbortError:
            pass
        except asyncio.CancelledError:
            self._finish(grpc.StatusCode.CANCELLED, "cancelled by the server", ())
            raise
        except Exception as error:  # noqa: BLE001 - as gRPC does; and it is a bug of ours
            self.connection.server.bugs.append(f"{self.method}: {error!r}")
            self._finish(grpc.StatusCode.UNKNOWN, repr(error), ())
        else:
            self._finish(self._code, "", self._trailing)

    async def _answer(self) -> None:
        handler = self._handler
        if handler.request_streaming:
            await handler.stream_stream(None, self)
            return
        data = await self.inbox.get()
        if data is None:
            return
        request = self._decoded(data)
        if handler.response_streaming:
            await handler.unary_stream(request, self)
        else:
            await self.write(await handler.unary_unary(request, self))

    def _send(self, deliver: Any) -> None:
        if not self._over:
            self.connection.to_client(self, deliver)

    def _finish(self, code: grpc.StatusCode, details: str, trailing: Pairs) -> None:
        self._send(lambda: self._client.finish(code, details, trailing))
        self._close()

    def _close(self) -> None:
        self._over = True
        self.connection.server_calls.pop(self, None)
        callbacks, self._when_done = self._when_done, []
        if self.connection.server.process.alive:
            for callback in callbacks:
                callback(self)

    # --- what grpc.aio offers

    def add_done_callback(self, callback: "Callable[[ServerCall], None]") -> None:
        """Calls back once the call is over."""
        self._when_done.append(callback)

    def invocation_metadata(self) -> Pairs:
        """The client's metadata."""
        return self._metadata

    def trailing_metadata(self) -> Pairs:
        """What will be sent with the status."""
        return self._trailing

    def set_trailing_metadata(self, metadata: Pairs) -> None:
        """What is to be sent with the status."""
        self._trailing = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status of a handler that returns."""
        self._code = code

    async def send_initial_metadata(self, metadata: Pairs) -> None:
        """Sends the first metadata."""
        self._send(lambda: self._client.got_initial(metadata))

    async def read(self) -> Any:
        """The next message, or EOF."""
        data = await self.inbox.get()
        return aio.EOF if data is None else self._decoded(data)

    def _decoded(self, data: bytes) -> Any:
        message = self._handler.request_deserializer(data)
        self.connection.server.read(message)
        return message

    async def write(self, message: Any) -> None:
        """Sends a message."""
        data = self._handler.response_serializer(message)
        for after_s in self.connection.copies(message):
            if after_s:
                self.connection.later(after_s, lambda: self._send(lambda: self._client.got(data)))
            else:
                self._send(lambda: self._client.got(data))
        await asyncio.sleep(0)
        await self.connection.down.room(self)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()
    ) -> NoReturn:
        """Ends the call with a status."""
        self._finish(code, details, trailing_metadata)
        raise aio.AbortError
