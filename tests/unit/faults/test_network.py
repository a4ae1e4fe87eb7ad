"""The network in memory: order, breaks, silence."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from grpc import aio

from faults.simulation.network import Connection, Network, Server
from faults.simulation.virtual_time import Process, VirtualLoop

METHOD = "/s/Count"


def _as_is(data: bytes) -> bytes:
    return data


class World:
    """One server that counts, and one client."""

    def __init__(self) -> None:
        self.network = Network(random.Random(1))  # noqa: S311 - seeded
        self.server = Process("server")
        self.client = Process("client")
        self.ended: list[str] = []
        handler = grpc.stream_stream_rpc_method_handler(self._count, _as_is, _as_is)
        generic = grpc.method_handlers_generic_handler("s", {"Count": handler})
        self.network.serve("there", Server(self.server, [generic], self.network.bugs))

    async def _count(self, _: object, context: Any) -> None:
        try:
            while (message := await context.read()) is not aio.EOF:
                await context.write(b"got " + message)
        finally:
            self.ended.append("handler")

    def call(self) -> Any:
        """A call of the client's."""
        channel = self.client.run(lambda: self.network.channel("there"))
        multi = channel.stream_stream(
            METHOD, request_serializer=_as_is, response_deserializer=_as_is
        )
        return self.client.run(multi)

    @property
    def connection(self) -> Connection:
        """The newest connection."""
        return self.network.connections[-1]


Play = Callable[[World], Coroutine[Any, Any, None]]


def play(story: Play) -> World:
    """Runs a story on virtual time."""
    loop, world = VirtualLoop(), World()
    try:
        loop.run_until_complete(story(world))
    finally:
        loop.clean_up()
        loop.close()
    return world


async def _all(call: Any) -> AsyncIterator[bytes]:
    async for message in call:
        yield message


def test_messages_arrive_in_order_whatever_their_delay() -> None:
    """A stream is ordered, and ends when both sides have said so."""

    async def story(world: World) -> None:
        call = world.call()
        for number in range(20):
            await call.write(str(number).encode())
        await call.done_writing()
        assert [m async for m in _all(call)] == [f"got {n}".encode() for n in range(20)]

    assert play(story).ended == ["handler"]


def test_a_cut_is_noticed_by_each_side_in_its_own_time() -> None:
    """The client finds out at once, the server three seconds later; nothing passes meanwhile."""

    async def story(world: World) -> None:
        call = world.call()
        await call.write(b"a")
        assert await call.read() == b"got a"
        world.network.cut(world.connection, client_after_s=0.0, server_after_s=3.0)
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"b")
        assert world.ended == []
        await asyncio.sleep(3.1)
        assert world.ended == ["handler"]

    play(story)


def test_what_a_silent_direction_held_back_arrives_when_it_goes_on() -> None:
    """A stall delays and reorders nothing."""

    async def story(world: World) -> None:
        call = world.call()
        await call.write(b"a")
        assert await call.read() == b"got a"
        world.connection.down.stall()
        await call.write(b"b")
        await call.write(b"c")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.shield(reading := asyncio.ensure_future(call.read()))
        world.connection.down.flow()
        assert [await reading, await call.read()] == [b"got b", b"got c"]

    play(story)


def test_a_call_that_is_held_up_lets_others_pass() -> None:
    """What is written of it waits, and so does who writes; then all of it arrives, in order."""

    async def story(world: World) -> None:
        held = world.call()
        await held.write(b"a")
        assert await held.read() == b"got a"
        other = world.client.run(lambda: held._channel).stream_stream(
            METHOD, request_serializer=_as_is, response_deserializer=_as_is
        )
        passing = world.client.run(other)
        [server_end] = world.connection.server_calls
        world.connection.up.choke(server_end)
        writing = asyncio.ensure_future(held.write(b"b"))
        await passing.write(b"c")
        assert await passing.read() == b"got c"
        await asyncio.sleep(5)
        assert not writing.done()
        world.connection.up.clear(server_end)
        await writing
        await held.write(b"d")
        assert [await held.read(), await held.read()] == [b"got b", b"got d"]

    play(story)


def test_who_writes_a_call_that_is_held_up_learns_of_its_end() -> None:
    """A call that breaks meanwhile holds nobody for ever."""

    async def story(world: World) -> None:
        call = world.call()
        await call.write(b"a")
        assert await call.read() == b"got a"
        [server_end] = world.connection.server_calls
        world.connection.up.choke(server_end)
        writing = asyncio.ensure_future(call.write(b"b"))
        await asyncio.sleep(1)
        world.network.cut(world.connection, client_after_s=1.0, server_after_s=1.0)
        async with asyncio.timeout(2):
            await writing
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"c")

    play(story)


def test_a_refused_connection_fails_the_call() -> None:
    """Nobody is there, so the call is UNAVAILABLE."""

    async def story(world: World) -> None:
        world.network.refusing.add("client")
        with pytest.raises(aio.AioRpcError) as caught:
            await world.call().read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    play(story)


def test_a_cancelled_call_cancels_its_handler() -> None:
    """The server learns of it, and whoever reads is cancelled."""

    async def story(world: World) -> None:
        call = world.call()
        await call.write(b"a")
        assert await call.read() == b"got a"
        reading = asyncio.ensure_future(call.read())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.sleep(1)

    assert play(story).ended == ["handler"]


def test_the_dead_send_nothing() -> None:
    """What a killed server would still have said does not arrive; its client is told of the end."""

    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        call = world.call()
        await call.write(b"a")
        assert await call.read() == b"got a"
        [server_end] = world.connection.server_calls
        loop.freeze(world.server)
        world.network.died(world.server, 0.5)
        world.connection.to_client(server_end, lambda: call.got(b"from the grave"))
        with pytest.raises(aio.AioRpcError):
            await call.read()

    assert play(story).ended == ["handler"]
