"""Why the orchestrator ended a stream, whatever became of what was being written."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from pool_managerd.errors import SessionLostError
from pool_managerd.link import streams
from pool_managerd.link.streams import STREAM_ERRORS, Ending, together, until_lost, written

CHUNK = bytes(256 << 10)
ROUNDS, AT_ONCE = 2, 5
COMMANDS = 20
# Bounds of a machine that is busy with other things; neither is waited for where all is well.
WAIT_S, STATUS_S = 60.0, 20.0
Behaviour = Callable[["aio.ServicerContext[Any, Any]"], Awaitable[None]]
Call = Any


async def at_once(context: "aio.ServicerContext[Any, Any]") -> None:
    """Reads nothing: no token."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")


async def after_a_message(context: "aio.ServicerContext[Any, Any]") -> None:
    """Takes one message and has enough, while others are under way."""
    await context.read()
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another host has this id")


async def without_an_error(context: "aio.ServicerContext[Any, Any]") -> None:
    """Takes one message and is done."""
    await context.read()


async def by_cancelling(context: "aio.ServicerContext[Any, Any]") -> None:
    """The code that grpc.aio raises as a cancellation."""
    await context.read()
    await context.abort(grpc.StatusCode.CANCELLED, "a proxy gave up")


async def after_messages(context: "aio.ServicerContext[Any, Any]") -> None:
    """Commands, and then the end: what came before it has to be read first."""
    await context.read()
    for _ in range(COMMANDS):
        await context.write(b"a command")
    await context.abort(grpc.StatusCode.UNAVAILABLE, "another orchestrator has taken over")


async def read_on(call: Call, turns: int = 0) -> None:
    """As the link reads, where a message may take some turns of the loop."""
    async for _ in call:
        for _ in range(turns):
            await asyncio.sleep(0)
    raise SessionLostError("the orchestrator closed the stream")


async def register(call: Call) -> None:
    """Everything that is to be said first, then the answer; as the link registers."""
    with contextlib.suppress(asyncio.InvalidStateError, aio.AioRpcError):
        for _ in range(20):
            await call.write(CHUNK)
    await read_on(call)


async def serve_busily(call: Call) -> None:
    """As a session that reads what was sent before the end after a write has failed."""
    await serve(call, turns=50)


async def serve(call: Call, turns: int = 0) -> None:
    """As a session reads and writes: it has much to tell."""

    async def write_on() -> None:
        while True:
            await written(call.write(CHUNK))

    await together(read_on(call, turns), write_on())


@pytest.mark.parametrize("client", [register, serve, serve_busily])
@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (at_once, (grpc.StatusCode.UNAUTHENTICATED, "no such token")),
        (after_a_message, (grpc.StatusCode.FAILED_PRECONDITION, "another host has this id")),
        (after_messages, (grpc.StatusCode.UNAVAILABLE, "another orchestrator has taken over")),
        (by_cancelling, (grpc.StatusCode.CANCELLED, "a proxy gave up")),
        (without_an_error, "the orchestrator closed the stream"),
    ],
)
async def test_a_failing_write_does_not_hide_why_a_stream_ended(
    client: Callable[[Call], Awaitable[None]],
    server: Behaviour,
    expected: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """grpc.aio calls some of them internal errors, finished or cancelled, or does so first."""
    monkeypatch.setattr(streams, "STATUS_S", STATUS_S)

    async def handler(_: object, context: "aio.ServicerContext[Any, Any]") -> None:
        await server(context)

    refusing = aio.server()
    handlers = {"Dispatch": grpc.stream_stream_rpc_method_handler(handler)}
    refusing.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    port = refusing.add_insecure_port("127.0.0.1:0")
    await refusing.start()
    told: Counter[object] = Counter()

    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def one() -> None:
            call = channel.stream_stream("/t/Dispatch")()
            ending = Ending(call)
            with pytest.raises(STREAM_ERRORS) as raised:
                await until_lost(client(call))
            error = await ending.error(raised.value)
            rpc = isinstance(error, aio.AioRpcError)
            told[(error.code(), error.details()) if rpc else str(error)] += 1

        async with asyncio.timeout(WAIT_S):
            for _ in range(ROUNDS):
                await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    await refusing.stop(None)

    assert told == {expected: ROUNDS * AT_ONCE}


class Silent:
    """A call that a failed write has ended, and of which nobody ever hears why."""

    def __init__(self, over: bool = True) -> None:
        self.over = over

    def add_done_callback(self, _: object) -> None:
        """Nobody is told."""

    def done(self) -> bool:
        """As told."""
        return self.over

    async def code(self) -> grpc.StatusCode:
        """That of the write."""
        return grpc.StatusCode.INTERNAL

    async def details(self) -> str:
        """Those of the write."""
        return streams.WRITE_FAILED


async def test_the_wait_for_the_other_sides_reason_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the first error stands; of a call that is open, or an error that tells why, at once."""
    monkeypatch.setattr(streams, "STATUS_S", 0.02)
    failed = aio.AioRpcError(
        grpc.StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), streams.WRITE_FAILED
    )
    ours = SessionLostError("an orchestrator of the past")

    async with asyncio.timeout(WAIT_S):
        assert await Ending(Silent()).error(failed) is failed  # type: ignore[arg-type]  # reason: a stand-in
    monkeypatch.setattr(streams, "STATUS_S", 10 * WAIT_S)
    async with asyncio.timeout(WAIT_S):
        assert await Ending(Silent(over=False)).error(failed) is failed  # type: ignore[arg-type]  # reason: a stand-in
        assert await Ending(Silent()).error(ours) is ours  # type: ignore[arg-type]  # reason: a stand-in
