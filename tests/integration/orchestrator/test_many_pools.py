"""More pools than one message can hold: listed in pages, watched in parts. OC-CTRL-2001."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch_client import AsyncClient
from tests.integration.orchestrator.calls import WAIT_S, details
from tests.integration.orchestrator.conftest import Orchestrator
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot

EACH = 60
DETAIL = "x" * 40_000


async def wordy_host(orchestrator: Orchestrator, number: int) -> ScriptedHost:
    """A host whose devices say so much that the pools of two do not fit into a message."""
    host = orchestrator.host(f"host-{number}")
    device = snapshot_pb2.Device(device_id="gpu", name=DETAIL)
    pools = [
        snapshot(f"pool-{number}-{at:02d}", host_id=host.host_id, devices=[device])
        for at in range(EACH)
    ]
    await host.register(*pools)
    return host


@pytest.fixture
async def ids(orchestrator: Orchestrator) -> list[str]:
    """The ids of all pools of two such hosts, in order."""
    await asyncio.gather(wordy_host(orchestrator, 1), wordy_host(orchestrator, 2))
    return [f"pool-{number}-{at:02d}" for number in (1, 2) for at in range(EACH)]


async def test_pages_hold_every_pool_once(orchestrator: Orchestrator, ids: list[str]) -> None:
    """Whether their size was asked for, or is what fits into a message."""
    found: dict[int, list[str]] = {}
    for size in (0, 7, 1_000):
        pages: list[pb.ListPoolsResponse] = []
        token = ""
        while not pages or token:
            request = pb.ListPoolsRequest(page_size=size, page_token=token)
            pages.append(await orchestrator.pools.ListPools(request))
            token = pages[-1].next_page_token
        found[size] = [pool.pool_id for page in pages for pool in page.pools]
        assert len(pages) >= (18 if size == 7 else 2)

    assert found == {0: ids, 7: ids, 1_000: ids}


async def test_the_client_lists_them_all(orchestrator: Orchestrator, ids: list[str]) -> None:
    """`llorch pools` shows what does not fit into one answer too."""
    async with AsyncClient(str(orchestrator.server.address)) as client:
        pools = await client.pools()

    assert [pool.pool_id for pool in pools] == ids


async def test_watchers_get_them_in_parts(orchestrator: Orchestrator, ids: list[str]) -> None:
    """All but the last message say that more of the same state follows."""
    call = orchestrator.pools.WatchPools(pb.WatchPoolsRequest())
    seen: list[str] = []
    async with asyncio.timeout(WAIT_S):
        while True:
            message = await call.read()
            assert isinstance(message, pb.WatchPoolsResponse)
            seen += [pool.pool_id for pool in message.pools]
            if not message.more:
                break

    assert sorted(seen) == ids


async def test_pages_go_on_behind_the_longest_names(orchestrator: Orchestrator) -> None:
    """What a page ends with is its token, whatever a host calls its pools."""
    host, names = orchestrator.host("host-1"), [letter * 256 for letter in "abc"]
    await host.register(*(snapshot(n, host_id="host-1", replica_id=n[:9]) for n in names))
    found, token = [], ""

    for _ in names:
        request = pb.ListPoolsRequest(page_size=1, page_token=token)
        page = await orchestrator.pools.ListPools(request)
        found, token = [*found, *(pool.pool_id for pool in page.pools)], page.next_page_token

    assert (found, token) == (names, "")


async def test_a_token_of_nobody_is_refused(orchestrator: Orchestrator) -> None:
    """As by the other lists."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.pools.ListPools(pb.ListPoolsRequest(page_token="x" * 300))

    assert details(refused.value)[0].reason == "INVALID_PARAMS"
