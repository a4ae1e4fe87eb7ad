"""Counts add up in every scrape, while jobs come and end in every way. ORCH-3028."""

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path

from llamaorch_client import (
    AsyncClient,
    JobState,
    ReloadOutcome,
    Sampling,
)
from tests.integration.telemetry.both import WAIT_S, Both, both, parsed, start_orchestrator, total
from tests.integration.telemetry.load import run_client, run_client_for_ever

OUTCOMES = ("finished", "cancelled", "dropped", "expired", "failed", "retracted")
CLIENTS = 4
RESTARTS = 3


async def _check_sums(running: Both) -> Counter[str]:
    """Scrapes both services once; returns what became of the jobs so far."""
    found = parsed(await running.text("orchestratord"))
    ended = Counter(
        {name: int(total(found, "tasks_finished_total", outcome=name)) for name in OUTCOMES}
    )
    live = total(found, "tasks_live")
    assert total(found, "tasks_finished_total") == ended.total()
    assert total(found, "tasks_enqueued_total") == ended.total() + live
    assert total(found, "tasks_canceled_total") == ended["cancelled"]
    assert total(found, "tasks_live", state="queued") == total(found, "queue_depth")
    host = parsed(await running.text("pool-managerd"))
    assert total(host, "poold_attempts_started_total") == (
        total(host, "poold_attempts_ended_total") + total(host, "poold_attempts_running")
    )
    return ended + Counter(live=int(live))


async def test_what_was_enqueued_has_ended_or_lives_in_every_scrape(tmp_path: Path) -> None:
    """Under load, with a full queue that drops; and in the first scrape after a restart."""
    queue = {"capacity": 4, "policy": "drop-lru"}
    async with both(tmp_path, queue=queue) as running, asyncio.timeout(3 * WAIT_S):
        load = asyncio.gather(*(run_client(running, seed) for seed in range(CLIENTS)))
        scrapes = 0
        while not load.done():
            seen = await _check_sums(running)
            scrapes += 1
        await load
        async with AsyncClient(running.address) as client:
            slow = Sampling(engine_options={"mock": {"stall_after_tokens": 1}})
            left = [
                await client.enqueue(model_id="mock", prompt="stay", sampling=slow)
                for _ in range(3)
            ]
        seen = await _check_sums(running)
        address = running.address
        await running.orchestrator.stop()
        running.orchestrator = await start_orchestrator(tmp_path, address, queue=queue)

        after = await _check_sums(running)
        async with AsyncClient(address) as client:
            # Where failures had closed the pool, one of them may have given way to another.
            states = [(await client.cancel(receipt.job_id)).state for receipt in left]
            done = await _check_sums(running)

    assert scrapes > 3
    assert all(seen[name] for name in ("finished", "cancelled", "dropped", "expired", "failed"))
    assert after["live"] == seen["live"] >= 3
    assert done["cancelled"] == states.count(JobState.CANCELLED) >= 1


async def _ready(client: AsyncClient) -> None:
    """The host is back after a restart."""
    async with aclosing(client.watch_pools()) as told:
        async for pools in told:
            if any(pool.state == "READY" for pool in pools):
                return


async def test_sums_close_while_pools_are_reloaded_and_the_orchestrator_restarts(
    tmp_path: Path,
) -> None:
    """An engine that is replaced under its jobs, drains, and three restarts under load."""
    queue = {"capacity": 8}
    async with both(tmp_path, queue=queue) as running, asyncio.timeout(3 * WAIT_S):
        address = running.address
        load = asyncio.gather(*(run_client_for_ever(running, seed) for seed in range(CLIENTS)))
        outcomes = []
        for _ in range(RESTARTS):
            async with AsyncClient(address) as client:
                await _ready(client)
                reloaded = await client.reload_pool("mock", timeout_s=0.02)
                outcomes.append(reloaded.outcome)
                await _check_sums(running)
                await client.drain_pool("mock", timeout_s=0)
                await _check_sums(running)
                await client.undrain_pool("mock")
            await _check_sums(running)
            await running.orchestrator.stop()
            running.orchestrator = await start_orchestrator(tmp_path, address, queue=queue)
            await _check_sums(running)
        assert not load.done()
        load.cancel()
        seen = await _check_sums(running)

    assert seen.total() > 0
    assert set(outcomes) == {ReloadOutcome.DONE}
