"""What every call has in common: which of its errors are bugs of ours."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.servicers import rpc


async def test_a_stream_that_still_reads_when_the_server_has_stopped_is_no_bug() -> None:
    """Stopping ends calls at any point of theirs; nobody is asked to report that."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def handle(context: rpc.Context) -> None:
        begun.set()
        try:
            await stopped.wait()
        except asyncio.CancelledError:
            # As on a loaded machine, where the last message is handled after the stop.
            await stopped.wait()
        await rpc.read(context, pb.ExchangeRequest)

    assert await events_of(handle, begun, stopped) == []


async def test_a_wrong_use_of_a_call_is_a_bug() -> None:
    """What only a wrong handler does is logged as an internal error."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def handle(context: rpc.Context) -> None:
        begun.set()
        await context.send_initial_metadata(())

    assert await events_of(handle, begun, stopped) == ["internal_error"]


async def events_of(
    handle: Callable[[rpc.Context], Awaitable[None]],
    begun: asyncio.Event,
    stopped: asyncio.Event,
) -> list[str]:
    """Log events of one stream whose server stops as soon as its handler has begun."""
    over = asyncio.Event()
    served: Any = rpc.bidi(handle, pb.ExchangeRequest)

    async def call(messages: object, context: rpc.Context) -> None:
        try:
            await served.stream_stream(messages, context)
        finally:
            over.set()

    method: Any = grpc.stream_stream_rpc_method_handler(call)
    server = aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Stream": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as lines:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(30):
            stream: Any = channel.stream_stream("/test.Service/Stream")()
            await begun.wait()
            await server.stop(None)
            stopped.set()
            await over.wait()
            with pytest.raises(aio.AioRpcError):
                await stream.read()
    return [line["event"] for line in lines]
