"""Counts add up in every scrape, while jobs come and end in every way. ORCH-3028."""

import asyncio
import contextlib
import random
from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    JobState,
    LlamaOrchError,
    Priority,
    ReloadOutcome,
    RetryOptions,
    Sampling,
)
from tests.integration.telemetry.both import WAIT_S, Both, both, parsed, start_orchestrator, total

OUTCOMES = ("finished", "cancelled", "dropped", "expired", "failed", "retracted")
CLIENTS = 4
JOBS_EACH = 30
RESTARTS = 3
ONCE = ClientOptions(retry=RetryOptions(attempts_max=1))


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


async def run_client(running: Both, seed: int) -> None:
    """Jobs that finish, fail, run out of time, are cancelled, or give way to others."""
    chance = random.Random(seed)  # noqa: S311 - chooses, guards nothing
    async with AsyncClient(running.address, options=ONCE) as client:
        for number in range(JOBS_EACH):
            kind = chance.choice(("finish", "fail", "expire", "cancel", "leave"))
            script = {"token_count": 5, "token_interval_ms": 1}
            if kind == "fail":
                script = {"fail_after_tokens": 1}
            elif kind in ("expire", "cancel"):
                script = {"stall_after_tokens": 2}
            deadline = timedelta(milliseconds=30) if kind == "expire" else timedelta(seconds=20)
            try:
                receipt = await client.enqueue(
                    model_id="mock",
                    prompt="go",
                    priority=chance.choice(list(Priority)),
                    sampling=Sampling(seed=number, engine_options={"mock": script}),
                    deadline=datetime.now(UTC) + deadline,
                )
            except LlamaOrchError:
                continue
            if kind == "cancel":
                await _cancel(client, receipt.job_id)
            elif kind == "finish":
                await _outcome(client, receipt.job_id)


async def _for_ever(running: Both, seed: int) -> None:
    while True:
        await run_client(running, seed)


async def _cancel(client: AsyncClient, job_id: str) -> None:
    # A server that is started anew takes it a moment later, or never: the job ends all the same.
    with contextlib.suppress(LlamaOrchError):
        await client.cancel(job_id)


async def _outcome(client: AsyncClient, job_id: str) -> None:
    try:
        async for _ in client.stream(job_id):
            pass
    except LlamaOrchError:
        pass


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
        load = asyncio.gather(*(_for_ever(running, seed) for seed in range(CLIENTS)))
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
