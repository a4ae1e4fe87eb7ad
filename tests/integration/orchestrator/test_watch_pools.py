"""WatchPools: everything first, then changes, a few a second, for a bounded number of readers."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.servicers import pool_board
from orchestrator_core.servicers.pool_board import PoolBoard
from tests.integration.orchestrator.calls import WAIT_S, details, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot

Watch = grpc.aio.UnaryStreamCall[pb.WatchPoolsRequest, pb.WatchPoolsResponse]


def watch(orchestrator: Orchestrator) -> Watch:
    """A reader of the pools."""
    call: Watch = orchestrator.pools.WatchPools(pb.WatchPoolsRequest())
    return call


async def read(call: Watch) -> pb.WatchPoolsResponse:
    """The next message."""
    message = await asyncio.wait_for(call.read(), WAIT_S)
    assert isinstance(message, pb.WatchPoolsResponse)
    return message


async def until(call: Watch, state: str) -> list[pb.WatchPoolsResponse]:
    """Reads until some pool is in a state; everything read."""
    seen = [await read(call)]
    while all(pool.state != state for pool in seen[-1].pools):
        seen.append(await read(call))
    return seen


async def test_full_state_comes_first_also_when_it_is_empty(orchestrator: Orchestrator) -> None:
    """A reader knows at once that there is nothing, and then of the first pool."""
    call = watch(orchestrator)

    empty = await read(call)
    await ready_host(orchestrator)
    first = await read(call)

    assert (list(empty.pools), list(empty.removed_pool_ids)) == ([], [])
    assert [(pool.pool_id, pool.state) for pool in first.pools] == [("pool-a", "READY")]


async def test_only_pools_that_changed_are_sent_again(orchestrator: Orchestrator) -> None:
    """Of two pools one changes: the other is not repeated, nor is a snapshot that says the same."""
    host = orchestrator.host()
    await host.register(snapshot("pool-a"), snapshot("pool-b"))
    call = watch(orchestrator)
    whole = await read(call)

    async with host.reports() as reports:
        await reports.send(snapshot("pool-a", version=2))
        await reports.send(snapshot("pool-b", version=2, slots_free=1))
        change = await read(call)

    assert [pool.pool_id for pool in whole.pools] == ["pool-a", "pool-b"]
    assert [(pool.pool_id, pool.slots_free) for pool in change.pools] == [("pool-b", 1)]


async def test_devices_and_a_lost_host_are_changes(orchestrator: Orchestrator) -> None:
    """What no decision needs is sent too, and a host that leaves makes its pools DISCONNECTED."""
    host = await ready_host(orchestrator)
    call = watch(orchestrator)
    await read(call)

    async with host.reports() as reports:
        device = snapshot_pb2.Device(device_id="GPU-1", name="GPU", utilization_ratio=0.5)
        await reports.send(snapshot(version=2, devices=[device]))
        busy = await read(call)
    await host.close()
    gone = (await until(call, "DISCONNECTED"))[-1]

    assert busy.pools[0].devices[0].utilization_ratio == 0.5
    assert not gone.pools[0].connected


async def test_pools_that_are_gone_are_named(orchestrator: Orchestrator) -> None:
    """A host that comes back without a pool takes it from the list."""
    host = orchestrator.host()
    await host.register(snapshot("pool-a"), snapshot("pool-b"))
    call = watch(orchestrator)
    await read(call)

    again = orchestrator.host(host.host_id, host.boot_id)
    await again.register(snapshot("pool-a"), dial_seq=2)
    removed: list[str] = []
    while not removed:
        removed.extend((await read(call)).removed_pool_ids)

    assert removed == ["pool-b"]


async def test_many_changes_become_few_messages_with_the_newest_state(
    orchestrator: Orchestrator,
) -> None:
    """Fifty states in a burst are told in fewer messages, and the last one is among them."""
    host = await ready_host(orchestrator)
    call = watch(orchestrator)
    await read(call)

    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with host.reports() as reports:
        for version in range(2, 52):
            await reports.send(snapshot(version=version, slots_total=100, slots_free=version))
    seen = [await read(call)]
    while seen[-1].pools[0].slots_free != 51:
        seen.append(await read(call))

    elapsed_ms = (loop.time() - began_s) * 1000
    assert len(seen) <= 2 + elapsed_ms / pool_board.INTERVAL_MS


async def test_readers_are_bounded_and_one_that_leaves_makes_room(
    start_orchestrator: StartOrchestrator,
) -> None:
    """One more than `pools.watchers_max` is refused with its policy; a place is given back."""
    orchestrator = await start_orchestrator(pools={"watchers_max": 1})
    first = watch(orchestrator)
    await read(first)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(watch(orchestrator))
    first.cancel()
    async with asyncio.timeout(WAIT_S):
        while not (let_in := await _lets_in(orchestrator)):
            pass  # Each try is a call: the server learns of the one that left meanwhile.

    info, found = details(refused.value)
    assert let_in
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info.metadata["policy_label"] == "watchers"
    assert "RetryInfo" in found


async def _lets_in(orchestrator: Orchestrator) -> bool:
    call = watch(orchestrator)
    try:
        await read(call)
    except grpc.aio.AioRpcError:
        return False
    call.cancel()
    return True


async def test_a_large_fleet_comes_in_several_messages(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last message of one state say that more of it follows."""
    monkeypatch.setattr(pool_board, "POOLS_PER_MESSAGE", 2)
    host = orchestrator.host()
    await host.register(*(snapshot(f"pool-{number}") for number in range(5)))
    call = watch(orchestrator)

    pages = [await read(call)]
    while pages[-1].more:
        pages.append(await read(call))

    assert [len(page.pools) for page in pages] == [2, 2, 1]
    assert [pool.pool_id for page in pages for pool in page.pools] == [
        f"pool-{number}" for number in range(5)
    ]


async def test_nothing_is_made_while_nothing_happens(orchestrator: Orchestrator) -> None:
    """The board waits for the core, and shares what it made between its readers."""
    board = PoolBoard(orchestrator.server.runtime, 2)
    made = 0
    original = board._messages

    def counted() -> list[pb.Pool]:
        nonlocal made
        made += 1
        return original()

    runtime = orchestrator.server.runtime
    board._messages = counted  # type: ignore[method-assign]
    began = runtime.steps
    with board.watch() as one, board.watch() as two:
        await asyncio.gather(one.next(), two.next())
        pending = [asyncio.create_task(watcher.next()) for watcher in (one, two)]
        done, _ = await asyncio.wait(pending, timeout=2 * pool_board.INTERVAL_MS / 1000)
        quiet, steps = made, runtime.steps - began
        await ready_host(orchestrator)
        async with asyncio.timeout(WAIT_S):
            told = await asyncio.gather(*pending)

    assert done == set()
    # A pause of this process is a step too.
    assert 1 <= quiet <= 1 + steps
    assert [len(pages[0].pools) for pages in told] == [1, 1]


async def test_who_comes_after_a_while_is_told_what_is_so_now(
    orchestrator: Orchestrator,
) -> None:
    """What changed while nobody watched is in the first message: `drain --wait` relies on it."""
    host = await ready_host(orchestrator)
    former = watch(orchestrator)
    await read(former)
    former.cancel()

    async with host.reports() as reports:
        await reports.send(snapshot(version=2, slots_free=1))
        await reports.send(snapshot(version=3, slots_free=1))
        # Only what is listed has arrived; each look is a call.
        async with asyncio.timeout(WAIT_S):
            while (await listed(orchestrator)).snapshot_version < 3:
                pass
        first = await read(watch(orchestrator))

    assert [(pool.slots_free, pool.snapshot_version) for pool in first.pools] == [(1, 3)]


async def listed(orchestrator: Orchestrator) -> pb.Pool:
    """The only pool."""
    (pool,) = (await orchestrator.pools.ListPools(pb.ListPoolsRequest())).pools
    return pool
