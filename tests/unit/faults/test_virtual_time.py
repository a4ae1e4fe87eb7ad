"""Virtual time, and processes that die in it."""

import asyncio
from collections.abc import Iterator

import pytest

from faults.simulation.virtual_time import Killed, Process, StuckError, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """A loop that is cleaned up."""
    loop = VirtualLoop()
    yield loop
    loop.clean_up()
    loop.close()


def test_time_jumps_to_the_next_timer(loop: VirtualLoop) -> None:
    """An hour passes at once, and timers fire in their order."""
    seen: list[tuple[str, float]] = []

    async def work(name: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        seen.append((name, loop.time()))

    async def both() -> None:
        await asyncio.gather(work("late", 3600.0), work("early", 0.25))

    loop.run_until_complete(both())

    assert seen == [("early", 0.25), ("late", 3600.0)]


def test_a_timeout_is_virtual_too(loop: VirtualLoop) -> None:
    """Asyncio's own timeouts follow the loop's clock."""

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()

    loop.run_until_complete(work())

    assert loop.time() == pytest.approx(30)


def test_nothing_to_wait_for_is_an_error(loop: VirtualLoop) -> None:
    """A run in which nothing will ever happen ends with a message instead of hanging."""

    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError):
        loop.run_until_complete(work())


def test_a_killed_process_runs_nothing_more(loop: VirtualLoop) -> None:
    """Neither its tasks, nor their finally blocks, nor its timers, nor what it asks for later."""
    process, seen = Process("p"), list[str]()

    async def life() -> None:
        asyncio.get_running_loop().call_later(2, seen.append, "timer")
        try:
            await asyncio.sleep(2)
            seen.append("after the sleep")
        finally:
            seen.append("finally")

    async def play() -> None:
        process.spawn(life())
        await asyncio.sleep(1)
        loop.freeze(process)
        process.run(lambda: asyncio.get_running_loop().call_soon(seen.append, "late"))
        await asyncio.sleep(10)
        assert seen == []

    loop.run_until_complete(play())


def test_the_dead_are_cleaned_up_when_the_run_is_over(loop: VirtualLoop) -> None:
    """What was frozen is cancelled then, so that nothing is left to complain about."""
    process, seen = Process("p"), list[str]()

    async def life() -> None:
        try:
            await asyncio.sleep(2)
        finally:
            seen.append("finally")

    async def play() -> None:
        process.spawn(life())
        await asyncio.sleep(1)
        loop.freeze(process)

    loop.run_until_complete(play())
    loop.clean_up()

    assert seen == ["finally"]
    assert process.busy == 0


def test_a_stopped_process_goes_on_where_it_was(loop: VirtualLoop) -> None:
    """What was due meanwhile is done when it goes on, what was cancelled meanwhile is not."""
    process, seen = Process("p"), list[tuple[str, float]]()

    async def life(name: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        seen.append((name, loop.time()))

    async def play() -> None:
        process.spawn(life("due", 2))
        process.spawn(life("later", 20))
        gone = process.spawn(life("cancelled", 3))
        await asyncio.sleep(1)
        loop.pause(process)
        gone.cancel()
        await asyncio.sleep(9)
        assert seen == []
        loop.resume(process)
        await asyncio.sleep(15)

    loop.run_until_complete(play())

    assert seen == [("due", 10.0), ("later", 20.0)]


def test_code_that_is_killed_as_it_runs_goes_no_further(loop: VirtualLoop) -> None:
    """A process can be killed by what it calls itself."""
    process, seen = Process("p"), list[str]()

    def die() -> None:
        loop.freeze(process)
        raise Killed

    async def life() -> None:
        try:
            die()
            seen.append("survived")
        except Exception:  # noqa: BLE001 - what services do everywhere
            seen.append("caught")

    async def play() -> None:
        process.spawn(life())
        await asyncio.sleep(1)

    loop.set_exception_handler(lambda _loop, _context: None)
    loop.run_until_complete(play())

    assert seen == []


def test_what_is_meant_for_a_thread_is_done_at_once(loop: VirtualLoop) -> None:
    """Its result, or its error, is there without a turn of any other."""

    def fail() -> None:
        raise ValueError("broken")

    async def main() -> int:
        with pytest.raises(ValueError, match="broken"):
            await asyncio.to_thread(fail)
        return await asyncio.to_thread(lambda: 7)

    assert loop.run_until_complete(main()) == 7
