"""How the sides of a stream end together."""

import asyncio

import pytest

from pool_managerd.errors import SessionLostError
from pool_managerd.link.streams import together, until_lost

WAIT_S = 20.0


async def for_ever() -> None:
    """A side that has nothing to do."""
    await asyncio.Event().wait()


async def cancelled_call() -> None:
    """What grpc.aio does to whoever reads a call that was cancelled under it."""
    raise asyncio.CancelledError


async def test_a_stream_cancelled_under_its_reader_is_lost() -> None:
    """The other side does not wait for ever: the loss is an error like any other."""
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(SessionLostError):
            await together(cancelled_call(), for_ever())


async def test_whoever_is_told_to_go_goes() -> None:
    """A cancellation from outside stays one."""
    task = asyncio.create_task(until_lost(for_ever()))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("steps", range(6))
async def test_a_failure_never_hides_a_cancellation(steps: int) -> None:
    """However the two interleave, a loop around a failing stream can be cancelled."""
    failing = asyncio.Event()
    rounds = 0

    async def side() -> None:
        await failing.wait()
        raise SessionLostError("the stream is over")

    async def loop() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            failing.clear()
            try:
                await together(side(), for_ever())
            except SessionLostError:
                continue

    task = asyncio.create_task(loop())
    for _ in range(3):
        await asyncio.sleep(0)
    failing.set()
    for _ in range(steps):
        await asyncio.sleep(0)

    task.cancel()

    async with asyncio.timeout(WAIT_S):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert rounds <= 2


async def test_a_side_may_end_before_the_others() -> None:
    """A side that is done does not end the stream."""
    ended = asyncio.Event()

    async def done() -> None:
        ended.set()

    task = asyncio.create_task(together(done(), for_ever()))
    async with asyncio.timeout(WAIT_S):
        await ended.wait()
    await asyncio.sleep(0)

    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
