"""The service that a host offers for inspection, over real gRPC."""

import asyncio

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from pool_managerd import servicer
from tests.integration.pool_managerd.fakes import WAIT_S
from tests.integration.pool_managerd.harness import Options, RunHost


async def test_snapshots_are_served_with_the_correlation_id(run_host: RunHost) -> None:
    """The caller's correlation id comes back; without one there is a new one. HME-030."""
    host = await run_host()
    await host.ready()
    async with aio.insecure_channel(host.manager.address) as channel:
        stub = PoolManagerServiceStub(channel)

        given = stub.GetSnapshots(
            manager_pb2.GetSnapshotsRequest(), metadata=(("x-correlation-id", "abc"),)
        )
        new = stub.GetSnapshots(manager_pb2.GetSnapshotsRequest())

        assert dict(await given.initial_metadata())["x-correlation-id"] == "abc"
        assert len(dict(await new.initial_metadata())["x-correlation-id"]) == 32
        pools = (await given).pools
        assert [(p.pool_id, p.state) for p in pools] == [("p0", snapshot_pb2.POOL_STATE_READY)]


async def test_a_watcher_sees_all_pools_first_and_then_each_change(run_host: RunHost) -> None:
    """A change of slots arrives without asking. OC-CTRL-2001."""
    host = await run_host()
    await host.ready()
    async with aio.insecure_channel(host.manager.address) as channel, asyncio.timeout(WAIT_S):
        call = PoolManagerServiceStub(channel).WatchSnapshots(manager_pb2.WatchSnapshotsRequest())
        first = await call.read()
        await host.start("j1", 1)
        second = await call.read()
        while not second.pools[0].running:
            second = await call.read()
        call.cancel()

    assert first.pools[0].slots_free == 1
    assert second.pools[0].slots_free == 0
    assert second.pools[0].running[0].job_id == "j1"


async def test_watchers_are_bounded(run_host: RunHost) -> None:
    """One watcher too many is refused with a typed reason. LO-302."""
    host = await run_host(Options(config={"limits": {"watchers_max": 1}}))
    await host.ready()
    async with aio.insecure_channel(host.manager.address) as channel, asyncio.timeout(WAIT_S):
        stub = PoolManagerServiceStub(channel)
        first = stub.WatchSnapshots(manager_pb2.WatchSnapshotsRequest())
        await first.read()
        refused = stub.WatchSnapshots(manager_pb2.WatchSnapshotsRequest())

        with pytest.raises(aio.AioRpcError) as caught:
            await refused.read()
        first.cancel()

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.GRPC_DETAILS_METADATA_KEY
    assert status in dict(caught.value.trailing_metadata())


async def test_health_and_reflection_are_served(run_host: RunHost) -> None:
    """Standard tools can look at a host without our protos."""
    host = await run_host()
    async with aio.insecure_channel(host.manager.address) as channel, asyncio.timeout(WAIT_S):
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="llamaorch.pool.v1.PoolManagerService")
        )
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        call.cancel()

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    names = {service.name for service in listed.list_services_response.service}
    assert "llamaorch.pool.v1.PoolManagerService" in names


async def test_a_watcher_that_reads_nothing_gives_its_place_back(
    run_host: RunHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others can look at the host again, although its connection lives on. LO-302."""
    monkeypatch.setattr(servicer, "WATCH_GAP_MS", 0)
    monkeypatch.setattr(servicer, "WRITE_TIMEOUT_MS", 50)
    host = await run_host(Options(config={"limits": {"watchers_max": 1}}))
    await host.ready()
    feed = host.manager._feed
    small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384))
    async with (
        aio.insecure_channel(host.manager.address, options=small) as channel,
        asyncio.timeout(WAIT_S),
    ):
        watching = PoolManagerServiceStub(channel).WatchSnapshots(
            manager_pb2.WatchSnapshotsRequest()
        )
        await watching.read()
        assert feed.full
        while feed.full:
            feed.publish("p0")
            await asyncio.sleep(0)
        second = PoolManagerServiceStub(channel).WatchSnapshots(manager_pb2.WatchSnapshotsRequest())

        assert (await second.read()).pools[0].pool_id == "p0"
        second.cancel()
        watching.cancel()
