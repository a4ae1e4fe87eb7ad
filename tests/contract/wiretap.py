"""Stands between a client and the server and writes down every byte that passes, in both ways.

It knows nothing of the messages, so it records clients in any language.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

KEPT_METADATA = ("x-correlation-id", "authorization", "traceparent")


@dataclass
class Sent:
    """One message of a client, and how many messages it had received before it sent it."""

    data: bytes
    after: int


@dataclass
class Call:
    """One call as it passed. `code` is None where the client left before the end."""

    method: str
    metadata: dict[str, str]
    sent: list[Sent] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    details: str = ""
    initial: dict[str, str] = field(default_factory=dict)
    trailing: dict[str, str | bytes] = field(default_factory=dict)


class Wiretap(grpc.GenericRpcHandler):
    """A server that passes every call on to `address`."""

    def __init__(self, address: str) -> None:
        self.calls: list[Call] = []
        self._channel = grpc.aio.insecure_channel(address)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> "Wiretap":
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        await self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Every method is a stream of bytes in both directions; on the wire all calls are."""
        found = dict(handler_call_details.invocation_metadata or ())
        metadata = {key: str(found[key]) for key in KEPT_METADATA if key in found}
        # Recordings that are made again differ in what has changed only.
        metadata["x-correlation-id"] = f"contract-{len(self.calls) + 1}"
        call = Call(handler_call_details.method, metadata)
        self.calls.append(call)
        return grpc.stream_stream_rpc_method_handler(self._relay(call))

    def _relay(self, call: Call) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def relay(requests: Any, context: Any) -> AsyncIterator[bytes]:
            onward = self._channel.stream_stream(call.method)(metadata=tuple(call.metadata.items()))
            sender = asyncio.create_task(_pass_on(requests, onward, call))
            try:
                initial = _pairs(await onward.initial_metadata())
                call.initial = {key: str(value) for key, value in initial.items()}
                await context.send_initial_metadata(tuple(call.initial.items()))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for data in onward:
                        call.received.append(data)
                        yield data
                trailing = _pairs(await onward.trailing_metadata())
                call.code, call.details = await onward.code(), await onward.details() or ""
                call.trailing = trailing
                if call.code is not grpc.StatusCode.OK:
                    await context.abort(call.code, call.details, tuple(trailing.items()))
            finally:
                sender.cancel()
                onward.cancel()

        return relay


async def _pass_on(requests: Any, onward: Any, call: Call) -> None:
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        async for data in requests:
            call.sent.append(Sent(data, len(call.received)))
            await onward.write(data)
        await onward.done_writing()


def _pairs(metadata: Any) -> dict[str, Any]:
    return dict(metadata or ())
