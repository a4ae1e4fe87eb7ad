"""How a campaign ends: faults first, so that what does not end after them was lost."""

import asyncio

from faults.chaos.campaign import over

WAIT_S = 20.0


async def test_faults_end_while_jobs_still_run() -> None:
    """Time is up: the jobs go on, and end once nothing disturbs them any more."""
    healed, tried = asyncio.Event(), asyncio.Event()
    tried.set()
    jobs = [asyncio.create_task(_until(healed)) for _ in range(3)]

    async with asyncio.timeout(WAIT_S):
        in_time = await over(jobs, tried, 0.01)
        running = [not job.done() for job in jobs]
        healed.set()
        await asyncio.gather(*jobs)

    assert not in_time
    assert running == [True] * 3


async def test_faults_go_on_until_every_point_was_tried() -> None:
    """Not only until the last job is done; then they end at once."""
    tried = asyncio.Event()
    job = asyncio.create_task(asyncio.sleep(0))

    async with asyncio.timeout(WAIT_S):
        early = await over([job], tried, 0.01)
        asyncio.get_running_loop().call_later(0.01, tried.set)
        late = await over([job], tried, 10 * WAIT_S)

    assert (early, late) == (False, True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
