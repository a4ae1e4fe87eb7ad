"""When texts count as lost that a host is to bring. LO-304."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.hosts.patience import Patience

STALL_S = 10.0
TOTAL_S = 60.0


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a story in virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.clean_up()
        loop.close()


async def ends_s(patience: Patience, host_id: str) -> float:
    """When the time of a text is over."""
    with pytest.raises(TimeoutError):
        async with patience.of(host_id, STALL_S):
            await asyncio.sleep(10 * TOTAL_S)
    return asyncio.get_running_loop().time()


def test_texts_of_a_host_end_together_after_its_last_word() -> None:
    """Also those that are not being read, and those that came later."""

    async def story() -> None:
        patience = Patience(TOTAL_S)
        first = asyncio.create_task(ends_s(patience, "h"))
        await asyncio.sleep(1)
        with patience.reading("h"):
            await asyncio.sleep(5)
            patience.heard("h")
            second = asyncio.create_task(ends_s(patience, "h"))
            assert [await first, await second] == [16.0, 16.0]
        assert not patience._waits

    run(story)


def test_who_is_not_asked_is_not_silent() -> None:
    """The places are taken by texts of others: only the time in all counts."""

    async def story() -> None:
        patience = Patience(TOTAL_S)
        waiting = asyncio.create_task(ends_s(patience, "h"))
        await asyncio.sleep(1)
        with patience.reading("other"):
            patience.heard("other")
        with patience.reading("h"):
            await asyncio.sleep(STALL_S - 1)
        assert await waiting == TOTAL_S
        assert not patience._reading

    run(story)


def test_no_text_is_waited_for_longer_than_all_of_it_may_take() -> None:
    """However much comes."""

    async def story() -> None:
        patience = Patience(TOTAL_S)
        waiting = asyncio.create_task(ends_s(patience, "h"))
        with patience.reading("h"):
            while not waiting.done():
                await asyncio.sleep(1)
                patience.heard("h")
        assert await waiting == TOTAL_S

    run(story)
