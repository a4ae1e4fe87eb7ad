"""Draining a pool under load, with real processes that die meanwhile. OC-CTRL-2002."""

import asyncio
from pathlib import Path

import pytest

from llamaorch_client import (
    Sampling,
)
from tests.acceptance.mock_fleet import DRAINED, OTHER, WAIT_S, Follower, fleet_of, pool_until

STREAMS = 8
SHORT = Sampling(seed=7, engine_options={"mock": {"token_count": 3}})


@pytest.mark.timeout(150)
async def test_a_drain_under_load_drops_nothing_whoever_dies(tmp_path: Path) -> None:
    """Streams end to the byte where they began, also with a new orchestrator; none begins there.

    That holds for a killed host too, until the drain is undone.
    """
    async with fleet_of(tmp_path) as (fleet, client):
        expected = (await Follower(client).run()).text
        followers = [Follower(client) for _ in range(STREAMS)]
        async with asyncio.TaskGroup() as group:
            for follower in followers:
                group.create_task(follower.run())
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(follower.began.wait() for follower in followers))
            drained = await client.drain_pool(DRAINED, timeout_s=120)
            await fleet.orchestrator.kill()
            await fleet.orchestrator.start()
        later = [await Follower(client, SHORT).run() for _ in range(2)]
        await fleet.hosts[0].kill()
        await fleet.hosts[0].start()
        back = await pool_until(client, DRAINED, lambda p: p.connected and p.state == "DRAINING")
        later += [await Follower(client, SHORT).run() for _ in range(2)]
        await client.undrain_pool(DRAINED)
        await pool_until(client, DRAINED, lambda pool: pool.state == "READY")
        await client.drain_pool(OTHER)
        last = await Follower(client, SHORT).run()

    assert (drained.state, drained.drain and drained.drain.running_attempts) == ("DRAINING", 4)
    assert [follower.text == expected for follower in followers] == [True] * STREAMS
    # On its first pool from beginning to end: nothing was started anew.
    assert sorted(follower.pools[0] for follower in followers) == [DRAINED] * 4 + [OTHER] * 4
    assert all(len(set(follower.pools)) == 1 for follower in followers)
    assert {pool_id for follower in later for pool_id in follower.pools} == {OTHER}
    assert back.drain is not None
    assert last.pools == [DRAINED]


@pytest.mark.timeout(120)
async def test_at_the_deadline_what_still_runs_goes_on_elsewhere(tmp_path: Path) -> None:
    """No stream is dropped before; then its host stops it and the failover policy decides."""
    async with fleet_of(tmp_path) as (_, client):
        expected = (await Follower(client).run()).text
        followers = [Follower(client) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            for follower in followers:
                group.create_task(follower.run())
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(follower.began.wait() for follower in followers))
            drained = followers[0].pools[0]
            await client.drain_pool(drained, timeout_s=0.2)
            idle = await pool_until(
                client, drained, lambda pool: pool.drain is not None and pool.slots_free == 4
            )

    assert idle.state == "DRAINING"
    assert [follower.text == expected for follower in followers] == [True, True]
