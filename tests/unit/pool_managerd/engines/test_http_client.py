"""How long a stream may be silent."""

import asyncio

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.engines.http_client import Silence


class Content:
    """Keeps what a reader of the answer would be told."""

    def __init__(self) -> None:
        self.heard_s = asyncio.get_running_loop().time()
        self.told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def hear(self) -> None:
        """Something came."""
        self.heard_s = asyncio.get_running_loop().time()

    def fail(self, error: Exception) -> None:
        """See `Answer`."""
        self.told.set_result(error)


def broken_off_s(breaks_s: tuple[float, ...]) -> float:
    """When an answer that may be silent for a second is broken off, given when something came."""

    async def watch() -> float:
        loop, content = asyncio.get_running_loop(), Content()
        for at_s in breaks_s:
            loop.call_at(at_s, content.hear)
        with Silence(content, 1.0):
            assert isinstance(await content.told, TimeoutError)
        return loop.time()

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(watch())
    finally:
        loop.close()


def test_an_answer_without_a_byte_is_broken_off() -> None:
    """Once its time is over, and not before."""
    assert 1.0 <= broken_off_s(()) < 1.01


def test_silence_counts_from_the_last_byte() -> None:
    """However long the answer is in all."""
    assert 4.4 <= broken_off_s((0.9, 1.7, 1.8, 2.7, 3.4)) < 4.41
