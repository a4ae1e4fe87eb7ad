"""A flag for one waiter, with an earliest time."""

import asyncio

import pytest

from pool_managerd.link.bell import Bell


async def test_a_ring_before_the_wait_ends_it_at_once() -> None:
    """However often it was rung, it is one ring: the next wait waits."""
    bell = Bell()
    bell.ring()
    bell.ring()
    await bell.wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bell.wait(), 0.01)


async def test_a_ring_wakes_the_waiter() -> None:
    """The ring is taken away with it."""
    bell = Bell()
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    bell.ring()
    await asyncio.wait_for(waiting, 5.0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bell.wait(), 0.01)


@pytest.mark.parametrize("rung_first", [True, False])
async def test_nobody_is_woken_before_the_time(rung_first: bool) -> None:
    """Whether it is rung before the wait or during it, and whatever rings come meanwhile."""
    bell, loop = Bell(), asyncio.get_running_loop()
    due_s = loop.time() + 0.05
    if rung_first:
        bell.ring()
    waiting = asyncio.create_task(bell.wait(due_s))
    for _ in range(3):
        await asyncio.sleep(0)
        bell.ring()
    await asyncio.wait_for(waiting, 5.0)

    assert loop.time() >= due_s - 0.001


async def test_a_cancelled_wait_leaves_the_ring_to_the_next_one() -> None:
    """A stream that ends while it waits for company loses nothing."""
    bell = Bell()
    bell.ring()
    waiting = asyncio.create_task(bell.wait(asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    await asyncio.wait_for(bell.wait(), 5.0)
