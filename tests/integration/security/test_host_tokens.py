"""Which token registers which host: nobody serves in the name of another."""

import grpc
import pytest
from grpc_status.rpc_status import from_call

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from llamaorch.pool.v1 import dispatch_pb2, pool_registry_service_pb2_grpc
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot
from tests.integration.security.conftest import Guarded, StartGuarded

TOKENS = {
    "bound": {"role": "pool", "host_id": "gpu-1"},
    "rival": {"role": "pool", "host_id": "gpu-2"},
    "loose": {"role": "pool"},
    "other": {"role": "pool"},
}


async def registered(guarded: Guarded, name: str, host_id: str, boot_id: str = "") -> ScriptedHost:
    """A host that was let in. Raises `AioRpcError` for one that was not."""
    channel = grpc.aio.insecure_channel(guarded.address)
    host = ScriptedHost(channel, host_id, boot_id or f"{name}-boot", guarded.metadata(name))
    await host.send_register(
        host_id=host_id,
        boot_id=host.boot_id,
        pools=[snapshot(f"{host_id}-pool", host_id=host_id)],
    )
    try:
        await host.command("registered")
    except AssertionError:
        raise await ended(host) from None
    return host


async def ended(host: ScriptedHost) -> grpc.aio.AioRpcError:
    """How a host's stream ended."""
    call = host._call
    trailing = await call.trailing_metadata()
    return grpc.aio.AioRpcError(
        await call.code(), grpc.aio.Metadata(), trailing, await call.details()
    )


@pytest.mark.parametrize(
    ("name", "host_id", "told"),
    [
        ("bound", "gpu-2", "is for host_id gpu-1, and this host is gpu-2"),
        ("loose", "gpu-1", "gpu-1 is bound to another token than that of loose"),
        ("rival", "gpu-1", "is for host_id gpu-2, and this host is gpu-1"),
        ("loose", "shared", "shared was registered with the token of other, not of loose"),
    ],
    ids=["bound", "loose", "rival", "late"],
)
async def test_a_token_registers_no_host_of_another(
    start_guarded: StartGuarded, name: str, host_id: str, told: str
) -> None:
    """AUTH-1007: by its binding, that of others, or who was there first; told which setting."""
    guarded = await start_guarded(TOKENS)
    await registered(guarded, "other", "shared")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registered(guarded, name, host_id)

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert told in (caught.value.details() or "")
    assert "host_id" in (caught.value.details() or "")
    assert set(guarded.server.runtime.hosts.links) == {"shared"}


async def test_a_host_that_is_away_stays_that_of_its_token(start_guarded: StartGuarded) -> None:
    """AUTH-1007: while it is down nobody takes its name, also not with its boot id."""
    guarded = await start_guarded(TOKENS)
    host = await registered(guarded, "other", "shared", "boot-1")
    await host.close()

    with pytest.raises(grpc.aio.AioRpcError, match="registered with the token of other"):
        await registered(guarded, "loose", "shared", "boot-1")

    assert await registered(guarded, "other", "shared", "boot-2")


@pytest.mark.parametrize(
    ("name", "host_id"), [("bound", "gpu-1"), ("loose", "gpu-3"), ("admin", "gpu-1")]
)
async def test_a_token_registers_its_own_host(
    start_guarded: StartGuarded, name: str, host_id: str
) -> None:
    """AUTH-1007: the bound one, one that is nobody's, and an admin any."""
    guarded = await start_guarded(TOKENS)

    assert await registered(guarded, name, host_id)


async def test_nobody_reports_snapshots_in_the_name_of_another_host(
    start_guarded: StartGuarded,
) -> None:
    """AUTH-1007: also not with its boot id."""
    guarded = await start_guarded(TOKENS)
    host = await registered(guarded, "bound", "gpu-1")
    before = guarded.server.runtime.core.pools["gpu-1-pool"].snapshot
    lie = snapshot("gpu-1-pool", host_id="gpu-1", version=9, slots_total=8, slots_free=8)

    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = pool_registry_service_pb2_grpc.PoolRegistryServiceStub(channel)
        stream = stub.ReportSnapshots(metadata=guarded.metadata("rival"))
        request = pb.ReportSnapshotsRequest(host_id="gpu-1", boot_id=host.boot_id, pools=[lie])
        await stream.write(request)
        await stream.read()
        stream.cancel()

    assert guarded.server.runtime.core.pools["gpu-1-pool"].snapshot == before


async def test_a_registration_is_bounded_in_bytes_and_messages(guarded: Guarded) -> None:
    """LO-306: a host with a valid token cannot make us keep more than a host's worth."""
    held = [dispatch_pb2.HeldAttempt(job_id="j" * 257, attempt=1)]
    for parts, told in (
        ([{"held": held, "more": True}], "held[0].job_id"),
        ([{"more": True}] * 1_025, "1024 messages"),
        ([{"pools": [snapshot(state_detail="x" * 3_900_000)], "more": True}] * 9, "bytes in all"),
    ):
        async with grpc.aio.insecure_channel(guarded.address) as channel:
            host = ScriptedHost(channel, "host-1", "boot-1", guarded.metadata("pool"))
            for part in parts:
                if host._call.done():
                    break
                fields = {"host_id": "host-1", "boot_id": "boot-1"} | part
                try:
                    await host.send_register(**fields)
                except (grpc.aio.AioRpcError, grpc.aio.BaseError):
                    break
            error = await ended(host)

        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert told in str(from_call(error))


async def test_an_attempt_that_runs_at_another_host_is_not_handed_over(guarded: Guarded) -> None:
    """LO-304: who knows job, attempt and replica cannot take over running or ended output."""
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        who = guarded.metadata("client")
        jobs = jobs_grpc.OrchestratorServiceStub(channel)
        host = ScriptedHost(channel, "host-1", "boot-1", guarded.metadata("pool"))
        await host.register(snapshot())
        spec = job_pb2.JobSpec(model_id="tiny", input=job_pb2.JobInput(text="hello"))
        job = await jobs.Enqueue(jobs_pb2.EnqueueRequest(spec=spec), metadata=who)
        handle = (await host.start()).handle

        verdicts = []
        for ended in (None, dispatch_pb2.AttemptEnded()):
            claim = dispatch_pb2.HeldAttempt(
                job_id=job.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", ended=ended
            )
            boot_id = f"boot-{len(verdicts)}"
            thief = ScriptedHost(channel, "host-2", boot_id, guarded.metadata("pool"))
            answer = await thief.register(held=(claim,))
            verdicts.append(answer.verdicts[0].verdict)
            await thief.close()
            if ended is None:
                await host.started(handle)
                await host.tokens(handle, "mine")
                await host.finish(handle)
                follow = jobs_pb2.StreamTokensRequest(job_id=job.job_id)
                async for _ in jobs.StreamTokens(follow, metadata=who):
                    pass

    assert verdicts == [
        dispatch_pb2.HELD_VERDICT_ABORT,
        dispatch_pb2.HELD_VERDICT_RELEASE,
    ]
