"""Tokens that expire, or are withdrawn while their streams are open."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as artifacts_pb2
from llamaorch.orchestrator.v1 import artifact_service_pb2_grpc as artifacts_grpc
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pools_pb2
from llamaorch.orchestrator.v1 import pool_admin_service_pb2_grpc as pools_grpc
from orchestrator_core.auth.tokens import Role, TokenEntry, Tokens, new_token, sha256_of
from orchestrator_core.servicers.auth import TokenGate
from pool_managerd.clock import SystemClock
from pool_managerd.config.schema import Config as HostConfig
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager
from tests.integration.orchestrator.artifact_calls import header
from tests.integration.security.conftest import Guarded, StartGuarded

WAIT_S = 10.0
END = dt.datetime(2100, 1, 31, 12, tzinfo=dt.UTC)
DATED = {"guest": {"role": "client", "expires": END}}
# Long enough for a stream to be opened, on a busy machine too.
LEFT_S = 1.0


def gate(guarded: Guarded, wall_s: float) -> TokenGate:
    """The gate of a server, whose clock shows a given time from now on."""
    found = guarded.server._gate
    assert found is not None
    found._wall_s = found._streams._wall_s = lambda: wall_s
    return found


@asynccontextmanager
async def watching(guarded: Guarded, name: str) -> AsyncIterator["Stream"]:
    """A stream that is open, and has told something."""
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = pools_grpc.PoolAdminServiceStub(channel)
        call = stub.WatchPools(pools_pb2.WatchPoolsRequest(), metadata=guarded.metadata(name))
        async with asyncio.timeout(WAIT_S):
            assert await call.read() is not grpc.aio.EOF, await call.details()
        yield call


Stream = grpc.aio.UnaryStreamCall[pools_pb2.WatchPoolsRequest, pools_pb2.WatchPoolsResponse]


async def end_of(call: Stream) -> tuple[grpc.StatusCode, str]:
    """How a stream ends."""
    async with asyncio.timeout(WAIT_S):
        return await call.code(), await call.details() or ""


async def ask(guarded: Guarded, name: str) -> str:
    """A unary call; empty when it is answered, else why it was refused."""
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = jobs_grpc.OrchestratorServiceStub(channel)
        call = stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=guarded.metadata(name))
        code = await call.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        return await call.details() or ""


async def test_a_token_counts_until_its_end_and_then_the_caller_is_told(
    start_guarded: StartGuarded,
) -> None:
    """AUTH-1003: to the instant, with the name and the end."""
    guarded = await start_guarded(DATED)

    gate(guarded, END.timestamp() - 0.001)
    assert await ask(guarded, "guest") == ""
    gate(guarded, END.timestamp())
    assert "the token of guest expired at 2100-01-31 12:00:00+00:00" in await ask(guarded, "guest")
    assert await ask(guarded, "client") == ""


async def test_a_stream_ends_with_its_token(start_guarded: StartGuarded) -> None:
    """AUTH-1003: who is connected for weeks is no exception; other streams go on."""
    guarded = await start_guarded(DATED)
    gate(guarded, END.timestamp() - LEFT_S)

    async with watching(guarded, "guest") as guest, watching(guarded, "client") as other:
        code, text = await end_of(guest)
        assert not other.done()

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "the token of guest expired at 2100-01-31" in text


@pytest.mark.parametrize("change", ["withdrawn", "role"])
async def test_a_stream_ends_when_its_token_is_withdrawn_or_opens_something_else(
    guarded: Guarded, change: str
) -> None:
    """AUTH-1003: a withdrawn token leaves no back door open."""
    kept = guarded.tokens["client"]
    tables = {
        "withdrawn": [TokenEntry("admin", Role.ADMIN, sha256_of(guarded.tokens["admin"]))],
        "role": [TokenEntry("client", Role.POOL, sha256_of(kept))],
    }

    async with watching(guarded, "client") as stream:
        found = guarded.server._gate
        assert found is not None
        found.use(Tokens(tables[change]))
        code, text = await end_of(stream)

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "the token of client was withdrawn, or opens something else now" in text


async def test_an_upload_ends_when_its_token_is_withdrawn(guarded: Guarded) -> None:
    """AUTH-1003: a stream of the client's is one, too."""

    async def endless() -> AsyncIterator[artifacts_pb2.PutArtifactRequest]:
        yield artifacts_pb2.PutArtifactRequest(header=header())
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = artifacts_grpc.ArtifactServiceStub(channel)
        call: Any = stub.PutArtifact(endless(), metadata=guarded.metadata("client"))
        await call.initial_metadata()
        found = guarded.server._gate
        assert found is not None
        found.use(Tokens([]))
        code, text = await end_of(call)

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "the token of client was withdrawn" in text


async def test_a_new_table_that_leaves_a_token_as_it_was_keeps_its_streams(
    guarded: Guarded,
) -> None:
    """AUTH-1003: the stream still tells of what happens after it."""
    same = [TokenEntry("client", Role.CLIENT, sha256_of(guarded.tokens["client"]))]
    found = guarded.server._gate
    assert found is not None

    async with watching(guarded, "client") as stream:
        found.use(Tokens(same))
        # The loop has had the turns that an end would have taken.
        assert "not one of this server's" in await ask(guarded, "admin")
        assert not stream.done()


async def test_a_hosts_inspection_refuses_an_expired_token_too() -> None:
    """AUTH-1003: the same line in the configuration of pool-managerd, the same answer."""
    clock = SystemClock()
    clock.wall_ns = lambda: int(END.timestamp() * 1e9)  # type: ignore[method-assign]
    token = new_token()
    config = HostConfig.model_validate(
        {
            "orchestrator": "127.0.0.1:1",
            "listen": "127.0.0.1:0",
            "host_id": "gpu1",
            "devices": "cpu",
            "pools": [{"pool_id": "p0", "engine": {"kind": "mock"}}],
            "auth": {
                "tokens": {"guest": {"role": "client", "sha256": sha256_of(token), "expires": END}}
            },
        }
    )
    manager = PoolManager(config, devices=CpuDevices(), clock=clock)
    running = asyncio.create_task(manager.run())
    try:
        async with asyncio.timeout(WAIT_S):
            await manager.listening.wait()
        async with grpc.aio.insecure_channel(manager.address) as channel:
            method = "/llamaorch.pool.v1.PoolManagerService/GetSnapshots"
            call = channel.unary_unary(method)(
                b"", metadata=(("authorization", f"Bearer {token}"),)
            )
            code, text = await call.code(), await call.details()
    finally:
        manager.stop()
        await running

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "the token of guest expired at 2100-01-31" in text
