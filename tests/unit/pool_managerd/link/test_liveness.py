"""When the orchestrator counts as gone, and when not."""

import asyncio
import time

import pytest

from pool_managerd.link.liveness import Liveness

TIMEOUT_MS = 240


async def gone_after_s(liveness: Liveness) -> float:
    """Seconds until the other side counts as gone."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(liveness.watch(), 5.0)
    return time.monotonic() - began_s


async def test_silence_for_the_timeout_is_an_end() -> None:
    """Neither before it nor much later."""
    assert 0.24 <= await gone_after_s(Liveness(TIMEOUT_MS)) < 0.6


async def test_what_is_heard_keeps_it_alive() -> None:
    """Each message gives a fresh interval."""
    liveness = Liveness(TIMEOUT_MS)
    watching = asyncio.create_task(gone_after_s(liveness))
    for _ in range(6):
        await asyncio.sleep(0.08)
        liveness.heard()

    assert await watching >= 0.48 + 0.24 - 0.01


async def test_a_write_that_nobody_takes_is_an_end() -> None:
    """Although the other side still speaks."""
    liveness = Liveness(TIMEOUT_MS)
    watching = asyncio.create_task(gone_after_s(liveness))
    with liveness:
        while not watching.done():
            liveness.heard()
            await asyncio.sleep(0.02)

    assert 0.24 <= await watching < 0.6


async def test_a_pause_of_this_process_does_not_count() -> None:
    """What came meanwhile could not be read; after it the rest of the timeout is left."""
    liveness = Liveness(TIMEOUT_MS)
    watching = asyncio.create_task(gone_after_s(liveness))
    await asyncio.sleep(0.02)

    time.sleep(1.0)  # noqa: ASYNC251 - the pause
    await asyncio.sleep(0.05)

    assert not watching.done()
    assert await watching >= 1.0 + 0.08


def test_the_timeout_is_bounded() -> None:
    """Nobody is waited for without an end."""
    with pytest.raises(ValueError, match="timeout_ms"):
        asyncio.run(_made())


async def _made() -> Liveness:
    return Liveness(0)
