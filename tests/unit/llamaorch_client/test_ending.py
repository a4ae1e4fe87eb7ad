"""How a call ended for the server, whatever became of what was being sent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from llamaorch_client.ending import Ending

CHUNK = bytes(256 << 10)
ROUNDS, AT_ONCE = 8, 5
WAIT_S = 10.0


async def refuse(_: object, context: "aio.ServicerContext[Any, Any]") -> None:
    """Takes one message and has enough."""
    await context.read()
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "enough", (("why", "because"),))


async def endless() -> AsyncIterator[bytes]:
    """A client that goes on whatever happens."""
    while True:
        yield CHUNK


async def test_a_failing_write_does_not_hide_why_the_server_ended_a_call() -> None:
    """grpc.aio tells of some that they are INTERNAL, or does so first."""
    server = aio.server()
    handlers = {"Put": grpc.stream_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    told: Counter[tuple[object, ...]] = Counter()

    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        put: Any = channel.stream_unary("/test/Put")

        async def one() -> None:
            call = put(endless(), timeout=WAIT_S)
            ending = Ending(call)
            with pytest.raises(aio.AioRpcError) as raised:
                await call
            error = await ending.error(raised.value)
            why = dict(error.trailing_metadata() or ())
            told[error.code(), error.details(), why.get("why")] += 1

        for _ in range(ROUNDS):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    await server.stop(None)

    assert told == {(grpc.StatusCode.INVALID_ARGUMENT, "enough", "because"): ROUNDS * AT_ONCE}
