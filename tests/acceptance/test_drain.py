"""Draining a pool under load, with real processes that die meanwhile. OC-CTRL-2002."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faults.chaos.fleet import MOCK_MODEL, Fleet
from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    FailoverPolicy,
    LlamaOrchError,
    Pool,
    RetryOptions,
    Sampling,
    Started,
    StreamOptions,
    Tokens,
)

WAIT_S = 60.0
DRAINED, OTHER = "host-1:mock", "host-2:mock"
STREAMS = 8
SAMPLING = Sampling(seed=7, engine_options={"mock": {"token_count": 100, "token_interval_ms": 20}})
SHORT = Sampling(seed=7, engine_options={"mock": {"token_count": 3}})
PATIENT = RetryOptions(attempts_max=500, time_max_ms=60_000, backoff_max_ms=500)
OPTIONS = ClientOptions(retry=PATIENT, stream=StreamOptions(retry=PATIENT))


class Follower:
    """One job: where it ran, and all of its text."""

    def __init__(self, client: AsyncClient, sampling: Sampling = SAMPLING) -> None:
        self._client, self._sampling = client, sampling
        self.pools: list[str] = []
        self.text = ""
        self.began = asyncio.Event()

    async def run(self) -> "Follower":
        """Gives the job and follows it to its end."""
        stream = self._client.run(
            model_id=MOCK_MODEL,
            prompt="load",
            sampling=self._sampling,
            failover=FailoverPolicy.VERIFIED_REPLAY,
        )
        async for event in stream:
            if isinstance(event, Started):
                self.pools.append(event.pool_id)
            if isinstance(event, Tokens):
                self.text += event.text
                self.began.set()
        return self


async def pool_until(client: AsyncClient, pool_id: str, good: Callable[[Pool], bool]) -> Pool:
    """Waits until a pool is as it should be; the server may be away meanwhile."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async for pools in client.watch_pools():
                    for pool in pools:
                        if pool.pool_id == pool_id and good(pool):
                            return pool
            except LlamaOrchError:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def fleet_of(directory: Path, hosts: int = 2) -> AsyncIterator[tuple[Fleet, AsyncClient]]:
    """One host or two with a mock pool each, READY."""
    fleet = Fleet(directory, hosts, engines=False)
    try:
        await fleet.start()
        async with AsyncClient(fleet.address, options=OPTIONS) as client:
            for pool_id in (DRAINED, OTHER)[:hosts]:
                await pool_until(client, pool_id, lambda pool: pool.state == "READY")
            yield fleet, client
            await fleet.close()
    finally:
        fleet.kill_all()


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
