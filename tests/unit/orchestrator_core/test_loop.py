"""The event loop: grpc.aio works on it, and its surplus wake-ups are dropped."""

import asyncio
import socket
from typing import Any

import grpc
import pytest

from orchestrator_core import loop as module
from orchestrator_core.loop import Loop


class Counted(module._Gathered):
    """Counts how often grpc's reader is called."""

    made = 0
    calls = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Counted.made += 1

    def __call__(self) -> None:
        Counted.calls += 1
        super().__call__()


def test_one_call_takes_all_wake_ups_and_leaves_the_reader_its_byte() -> None:
    """The reader takes one byte without looking: there must be exactly one."""
    left: list[int] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gathered = module._Gathered(ours, lambda: left.append(len(ours.recv(100))))
        for waiting in (1, 2, 50):
            theirs.send(b"1" * waiting)
            gathered()

    assert left == [1, 1, 1]


def test_messages_of_grpc_pass_and_its_reader_is_the_one_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should grpc name its reader otherwise one day, the loop would silently lose its advantage."""
    monkeypatch.setattr(module, "_Gathered", Counted)
    with asyncio.Runner(loop_factory=Loop) as runner:
        got = runner.run(_stream(200))

    assert got == [str(number).encode() for number in range(200)]
    assert Counted.made >= 1
    assert Counted.calls > 0


async def _stream(count: int) -> list[bytes]:
    """What a client reads from a server that writes so many messages."""

    async def handler(_: bytes, context: Any) -> None:
        for number in range(count):
            await context.write(str(number).encode())

    server = grpc.aio.server()
    methods = {"Count": grpc.unary_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        got = [message async for message in channel.unary_stream("/test/Count")(b"")]
    await server.stop(None)
    return got
