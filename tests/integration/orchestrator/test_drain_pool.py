"""DrainPool: placements stop at once, what runs goes on, and nobody forgets it. OC-CTRL-2002."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from llamaorch.orchestrator.v1 import decision_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb
from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.store.memory import MemoryJournal, MemoryStore
from tests.integration.orchestrator.calls import (
    WAIT_S,
    all_events,
    details,
    enqueue,
    job,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.orchestrator.stores import FailingStore, SlowStore


async def drain(
    orchestrator: Orchestrator, timeout_s: int | None = None, pool_id: str = "pool-a"
) -> pb.Pool:
    """Drains a pool."""
    request = pb.DrainPoolRequest(pool_id=pool_id)
    if timeout_s is not None:
        request.timeout.CopyFrom(Duration(seconds=timeout_s))
    return (await orchestrator.pools.DrainPool(request)).pool


async def undrain(orchestrator: Orchestrator, pool_id: str = "pool-a") -> pb.Pool:
    """Lets a pool take work again."""
    request = pb.DrainPoolRequest(pool_id=pool_id, undo=True)
    return (await orchestrator.pools.DrainPool(request)).pool


async def test_a_drained_pool_gets_no_job_and_loses_none(orchestrator: Orchestrator) -> None:
    """The stream under way is complete; who came later runs after the drain was ended."""
    host = await ready_host(orchestrator)
    first = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")

    pool = await drain(orchestrator, timeout_s=60)
    told = (await host.command("set_draining")).set_draining
    later = await enqueue(orchestrator)
    explained = await orchestrator.jobs.ExplainJob(jobs_pb.ExplainJobRequest(job_id=later.job_id))
    await host.tokens(start.handle, "two")
    await host.finish(start.handle)
    events = await all_events(orchestrator, first.job_id)
    waits = await job(orchestrator, later.job_id)
    back = await undrain(orchestrator)
    again = (await host.command("set_draining")).set_draining
    started = await host.start()

    assert (told.pool_id, told.draining, told.timeout_ms) == ("pool-a", True, 60_000)
    assert (pool.state, pool.drain.running_attempts) == ("DRAINING", 1)
    assert pool.drain.until.ToMilliseconds() - pool.drain.began_at.ToMilliseconds() == 60_000
    ((shortfall,),) = (exclusion.shortfalls for exclusion in explained.waiting_for)
    assert shortfall.reason == decision_pb2.EXCLUSION_REASON_NOT_READY
    assert shortfall.offered == "drained by an operator"
    assert text(events) == "one two"
    assert waits.state == job_pb2.JOB_STATE_QUEUED
    assert "`llorch undrain pool-a` lets it take work again" in pool.state_reason
    assert (again.draining, back.HasField("drain"), back.state) == (False, False, "READY")
    assert started.job_id == later.job_id


async def test_the_servers_default_bounds_a_drain_without_a_deadline(
    start_orchestrator: StartOrchestrator,
) -> None:
    """And a second word replaces the first one's deadline."""
    orchestrator = await start_orchestrator(pools={"drain_timeout_ms": 7_000})
    host = await ready_host(orchestrator)

    await drain(orchestrator)
    first = (await host.command("set_draining")).set_draining
    await drain(orchestrator, timeout_s=0)
    second = (await host.command("set_draining")).set_draining

    assert (first.timeout_ms, second.timeout_ms) == (7_000, 0)


async def test_a_drain_outlives_the_orchestrator_and_the_host(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Whoever starts anew, the pool stays drained with what is left of the time."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    await ready_host(first)
    await drain(first, timeout_s=60)
    await first.close()

    second = await start_orchestrator(store)
    host = await ready_host(second)
    told = (await host.command("set_draining")).set_draining
    await host.close()
    other_boot = second.host()
    await other_boot.register(snapshot(replica_id="pool-a-2"))
    again = (await other_boot.command("set_draining")).set_draining
    waiting = await enqueue(second)
    state = (await job(second, waiting.job_id)).state

    assert told.draining
    assert 0 < again.timeout_ms <= told.timeout_ms <= 60_000
    assert state == job_pb2.JOB_STATE_QUEUED


async def test_a_host_that_drains_without_our_knowledge_is_told_to_go_on(
    orchestrator: Orchestrator,
) -> None:
    """The drain was ended while the host was away, or belongs to another journal."""
    host = orchestrator.host()

    await host.register(
        snapshot(
            state=snapshot_pb2.POOL_STATE_DRAINING,
            state_reason=snapshot_pb2.POOL_STATE_REASON_OPERATOR,
        )
    )
    told = (await host.command("set_draining")).set_draining

    assert told == dispatch_pb2.SetPoolDraining(pool_id="pool-a", draining=False)


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (pb.DrainPoolRequest(pool_id="other"), grpc.StatusCode.NOT_FOUND, "no pool 'other'"),
        (pb.DrainPoolRequest(pool_id="other", undo=True), grpc.StatusCode.NOT_FOUND, "other"),
        (
            pb.DrainPoolRequest(pool_id="pool-a", timeout=Duration(seconds=-1)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "timeout",
        ),
        (
            pb.DrainPoolRequest(pool_id="pool-a", timeout=Duration(seconds=86_401)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "timeout",
        ),
    ],
)
async def test_what_cannot_be_done_says_why(
    orchestrator: Orchestrator, request_: pb.DrainPoolRequest, code: grpc.StatusCode, says: str
) -> None:
    """An unknown pool, a time that is none."""
    await ready_host(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.pools.DrainPool(request_)

    assert refused.value.code() is code
    assert says in str(refused.value.details())
    details(refused.value)


async def test_without_a_journal_nothing_is_promised_but_it_is_done_later(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The caller is told STORE_UNAVAILABLE; the host hears of it once it is durable."""
    store = FailingStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    store.broken = True

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await drain(orchestrator)
    (shown,) = (await orchestrator.pools.ListPools(pb.ListPoolsRequest())).pools
    watched = await asyncio.wait_for(
        orchestrator.pools.WatchPools(pb.WatchPoolsRequest()).read(), WAIT_S
    )
    store.broken = False
    async with asyncio.timeout(WAIT_S):
        told = (await host.command("set_draining")).set_draining
    (later,) = (await orchestrator.pools.ListPools(pb.ListPoolsRequest())).pools

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details(refused.value)[0].reason == "STORE_UNAVAILABLE"
    assert (shown.state, shown.HasField("drain"), told.draining) == ("DRAINING", False, True)
    assert "a restart would forget it" in shown.state_reason
    assert watched.pools[0].state_reason == shown.state_reason
    assert "a restart would forget it" not in later.state_reason
    assert "`llorch undrain pool-a`" in later.state_reason
    assert later.HasField("drain")


async def test_a_drain_is_shown_once_it_is_durable(start_orchestrator: StartOrchestrator) -> None:
    """What a restart would forget is told to nobody, and neither is its end."""
    store = SlowStore()
    orchestrator = await start_orchestrator(store)
    await ready_host(orchestrator)

    async def listed_while(asked: Callable[[], Awaitable[pb.Pool]]) -> tuple[bool, pb.Pool]:
        store.moving.clear()
        store.waiting.clear()
        asking = asyncio.ensure_future(asked())
        await asyncio.wait_for(store.waiting.wait(), WAIT_S)
        listing = asyncio.ensure_future(orchestrator.pools.ListPools(pb.ListPoolsRequest()))
        watching = asyncio.ensure_future(
            orchestrator.pools.WatchPools(pb.WatchPoolsRequest()).read()
        )
        for _ in range(3):
            await orchestrator.jobs.GetCapabilities(jobs_pb.GetCapabilitiesRequest())
        early = listing.done() or watching.done()
        store.moving.set()
        await asking
        (seen,), (listed,) = (await watching).pools, (await listing).pools
        assert (seen.state, seen.state_reason) == (listed.state, listed.state_reason)
        return early, listed

    early, drained = await listed_while(lambda: drain(orchestrator))
    early_too, back = await listed_while(lambda: undrain(orchestrator))

    assert (early, drained.state, drained.HasField("drain")) == (False, "DRAINING", True)
    assert (early_too, back.state, back.HasField("drain")) == (False, "READY", False)


async def test_who_was_replaced_tells_nothing_of_pools(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Its word on drains is that of the journal before another orchestrator took it."""
    journal = MemoryJournal()
    orchestrator = await start_orchestrator(MemoryStore(journal=journal))
    await ready_host(orchestrator)
    await drain(orchestrator)
    await MemoryStore(journal=journal).open()

    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: undrain(orchestrator),
        lambda: orchestrator.pools.ListPools(pb.ListPoolsRequest()),
        lambda: orchestrator.pools.WatchPools(pb.WatchPoolsRequest()).read(),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call(), WAIT_S)
        assert details(refused.value)[0].reason == "STORE_UNAVAILABLE"
