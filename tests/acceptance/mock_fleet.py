"""A fleet of hosts with a mock pool each, and jobs that are followed through its failures."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

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
SAMPLING = Sampling(seed=7, engine_options={"mock": {"token_count": 100, "token_interval_ms": 20}})
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
