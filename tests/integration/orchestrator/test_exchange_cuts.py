"""The client library's exchange through cuts, restarts and absences. LO-306, LO-301."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from llamaorch.pool.v1 import dispatch_pb2
from llamaorch_client import (
    ClientOptions,
    ExchangeOptions,
    NotFoundError,
    ResumeWindowError,
    RetryOptions,
    StreamOptions,
    Tokens,
    UnavailableError,
)
from orchestrator_core.store.memory import MemoryStore
from tests.integration.orchestrator.calls import ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.cuttable import Cuttable
from tests.integration.orchestrator.exchange_jobs import WAIT_S, begin, exchange, text_of, until
from tests.integration.orchestrator.scripted_host import snapshot


@pytest.fixture
async def proxy(orchestrator: Orchestrator) -> AsyncIterator[Cuttable]:
    """The way to the server, which can be cut."""
    async with Cuttable(str(orchestrator.server.address)) as made:
        yield made


async def test_open_jobs_survive_cuts(orchestrator: Orchestrator, proxy: Cuttable) -> None:
    """Every job goes on at the byte where it was, however often the connection breaks."""
    jobs, rounds = 20, 4
    host = await ready_host(orchestrator, slots_total=jobs, slots_free=jobs)
    async with exchange(proxy.address) as opened:
        given = [await opened.run(model_id="tiny", prompt=str(n)) for n in range(jobs)]
        results = [asyncio.create_task(job.result()) for job in given]
        handles = [await begin(host) for _ in given]
        for number in range(rounds):
            for handle in handles:
                await host.tokens(handle, f"{number}-{handle} ")
            proxy.cut()
            for handle in handles:
                await host.tokens(handle, f"{number}+{handle} ")
        for handle in handles:
            await host.finish(handle)
        async with asyncio.timeout(WAIT_S):
            texts = {(await result).text for result in results}

    assert texts == {
        "".join(f"{n}-{handle} {n}+{handle} " for n in range(rounds)) for handle in handles
    }
    assert opened.resumes >= 1
    assert proxy.connections > 1


async def test_open_jobs_survive_a_restart_of_the_server(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The running job goes on at the byte, the waiting one gets its slot, each ends once."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first, slots_total=1, slots_free=1)
    async with Cuttable(str(first.server.address)) as proxy, exchange(proxy.address) as opened:
        running = await opened.run(model_id="tiny", prompt="runs")
        waiting = await opened.run(model_id="tiny", prompt="waits")
        await begin(host, "one ", "two ")
        read = ""
        while read != "one two ":
            event = await until(running, Tokens)
            assert isinstance(event, Tokens)
            read += event.text
        results = [asyncio.create_task(text_of(job)) for job in (running, waiting)]

        await first.close()
        second = await start_orchestrator(store)
        proxy.lead_to(str(second.server.address))
        back = second.host(boot_id=host.boot_id)
        held = dispatch_pb2.HeldAttempt(
            job_id=running.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=2
        )
        pool = snapshot(slots_total=1, slots_free=1)
        verdict = (await back.register(pool, held=(held,))).verdicts[0]
        await back.tokens(verdict.handle, "one ", "two ", "three")
        await back.finish(verdict.handle)
        handle = await begin(back, "mine")
        await back.finish(handle)
        async with asyncio.timeout(WAIT_S):
            texts = [await result for result in results]

    assert texts == ["three", "mine"]
    assert running.text_offset == len("one two three")


async def test_an_outcome_whose_text_no_host_brings_is_given_up(
    start_orchestrator: StartOrchestrator,
) -> None:
    """After a restart, once the grace for hosts is over: RESUME_WINDOW, and others go on."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    options = ClientOptions(exchange=ExchangeOptions(acknowledge=False))
    async with exchange(first.server.address, options) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        handle = await begin(host, "gone")
        await host.finish(handle)
        await job.result()
    await first.close()

    second = await start_orchestrator(store, pools={"reattach_grace_ms": 100})
    async with exchange(second.server.address) as opened:
        lost = await opened.subscribe(job.job_id)
        with pytest.raises(ResumeWindowError):
            await asyncio.wait_for(lost.result(), WAIT_S)
        with pytest.raises(NotFoundError):
            await opened.cancel("nobody")


async def test_an_enqueue_in_flight_at_the_cut_is_accepted_once(
    orchestrator: Orchestrator, proxy: Cuttable
) -> None:
    """The server accepted it, the answer was lost: the repetition gets the first answer."""
    host = await ready_host(orchestrator)
    store = orchestrator.server._store
    commit, durable = store.commit, asyncio.Event()
    reached = asyncio.Event()

    async def slow(records: object) -> None:
        reached.set()
        await durable.wait()
        await commit(records)  # type: ignore[arg-type]

    async with exchange(proxy.address) as opened:
        store.commit = slow  # type: ignore[method-assign, assignment]
        giving = asyncio.create_task(opened.run(model_id="tiny", prompt="Hi"))
        await reached.wait()
        proxy.cut()
        durable.set()
        async with asyncio.timeout(WAIT_S):
            job = await giving
        handle = await begin(host, "once")
        await host.finish(handle)
        result = await job.result()

    assert job.receipt is not None
    assert job.receipt.duplicate
    assert result.text == "once"
    assert len(orchestrator.server.runtime.core.jobs) == 1


async def test_a_server_that_stays_away_is_given_up(
    orchestrator: Orchestrator, proxy: Cuttable
) -> None:
    """Whoever waits gets an error within the bounds; a later request tries anew."""
    await ready_host(orchestrator)
    few = RetryOptions(attempts_max=3, backoff_initial_ms=10, backoff_max_ms=20)
    options = ClientOptions(retry=few, stream=StreamOptions(retry=few))
    async with exchange(proxy.address, options) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(WAIT_S):
                await job.result()
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(WAIT_S):
                await opened.cancel(job.job_id)
        proxy.refusing = False
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(UnavailableError):
                    cancelled = await opened.cancel(job.job_id)
                    break

    assert cancelled.state.value == "CANCELLED"
