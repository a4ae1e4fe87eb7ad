"""ReloadPool: one command, and the caller is told what the host tells of it. OC-CTRL-2003."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from tests.integration.orchestrator.calls import WAIT_S, details, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import Reports, ScriptedHost, snapshot

Answer = asyncio.Task[pb.ReloadPoolResponse]


async def reload(orchestrator: Orchestrator, host: ScriptedHost, model: str) -> tuple[Answer, str]:
    """Asks for a reload; the call under way, and the id that the host was told."""
    request = pb.ReloadPoolRequest(pool_id="pool-a", model_ref=model)
    request.timeout.FromSeconds(9)

    async def call() -> pb.ReloadPoolResponse:
        answer: pb.ReloadPoolResponse = await orchestrator.pools.ReloadPool(request)
        return answer

    task = asyncio.create_task(call())
    told = (await host.command("reload")).reload
    assert (told.pool_id, told.model_ref, told.timeout_ms) == ("pool-a", model, 9_000)
    return task, told.reload_id


async def tell(
    reports: Reports,
    version: int,
    reload_id: str,
    state: snapshot_pb2.ReloadState.ValueType,
    detail: str = "",
) -> None:
    """The host says how far a reload is."""
    told = snapshot_pb2.PoolReload(reload_id=reload_id, state=state, detail=detail)
    await reports.send(snapshot(version=version, reload=told))


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (snapshot_pb2.RELOAD_STATE_DONE, pb.RELOAD_OUTCOME_DONE),
        (snapshot_pb2.RELOAD_STATE_ROLLED_BACK, pb.RELOAD_OUTCOME_ROLLED_BACK),
        (snapshot_pb2.RELOAD_STATE_FAILED, pb.RELOAD_OUTCOME_FAILED),
    ],
)
async def test_the_answer_comes_with_the_end_of_the_reload(
    orchestrator: Orchestrator,
    state: snapshot_pb2.ReloadState.ValueType,
    outcome: pb.ReloadOutcome.ValueType,
) -> None:
    """Neither a former reload nor the way there is its end."""
    host = await ready_host(orchestrator)
    async with host.reports() as reports:
        await tell(reports, 2, "former", snapshot_pb2.RELOAD_STATE_DONE)
        task, reload_id = await reload(orchestrator, host, "m.gguf")
        await tell(reports, 3, "former", snapshot_pb2.RELOAD_STATE_DONE)
        await tell(reports, 4, reload_id, snapshot_pb2.RELOAD_STATE_WAITING)
        await tell(reports, 5, reload_id, snapshot_pb2.RELOAD_STATE_LOADING)
        early = task.done()
        await tell(reports, 6, reload_id, state, "a sentence")
        answer = await asyncio.wait_for(task, WAIT_S)

    assert not early
    assert (answer.outcome, answer.detail) == (outcome, "a sentence")
    assert answer.pool.pool_id == "pool-a"


@pytest.mark.parametrize("heard", [True, False])
async def test_a_later_reload_replaces_an_earlier_one(
    orchestrator: Orchestrator, *, heard: bool
) -> None:
    """Both callers are answered, though the host may have told of the later one only."""
    host = await ready_host(orchestrator)
    async with host.reports() as reports:
        first, first_id = await reload(orchestrator, host, "one.gguf")
        if heard:
            await tell(reports, 2, first_id, snapshot_pb2.RELOAD_STATE_WAITING)
        second, second_id = await reload(orchestrator, host, "two.gguf")
        await tell(reports, 3, second_id, snapshot_pb2.RELOAD_STATE_DONE)
        answers = await asyncio.wait_for(asyncio.gather(first, second), WAIT_S)

    assert [answer.outcome for answer in answers] == [
        pb.RELOAD_OUTCOME_SUPERSEDED,
        pb.RELOAD_OUTCOME_DONE,
    ]


async def test_a_host_that_comes_back_goes_on_and_another_run_of_it_knows_nothing(
    orchestrator: Orchestrator,
) -> None:
    """Who has heard the command tells the end on its next stream; else the caller is told so."""
    host = await ready_host(orchestrator)
    task, reload_id = await reload(orchestrator, host, "m.gguf")
    done = snapshot_pb2.PoolReload(reload_id=reload_id, state=snapshot_pb2.RELOAD_STATE_DONE)

    await host.close()
    again = orchestrator.host(host.host_id, host.boot_id)
    await again.register(snapshot(version=2, reload=done), dial_seq=2)
    heard = await asyncio.wait_for(task, WAIT_S)
    task, _ = await reload(orchestrator, again, "m.gguf")
    await again.close()
    other = orchestrator.host(host.host_id)
    await other.register(snapshot(replica_id="pool-a-2"))
    unheard = await asyncio.wait_for(task, WAIT_S)

    assert heard.outcome == pb.RELOAD_OUTCOME_DONE
    assert unheard.outcome == pb.RELOAD_OUTCOME_UNKNOWN
    assert "lost" in unheard.detail


async def test_the_caller_is_told_when_the_host_never_comes_back(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Once its pools are forgotten nobody can tell any more what became of the command."""
    orchestrator = await start_orchestrator(pools={"retention_ms": 100, "reattach_grace_ms": 100})
    host = await ready_host(orchestrator)
    task, _ = await reload(orchestrator, host, "m.gguf")

    await host.close()
    answer = await asyncio.wait_for(task, WAIT_S)

    assert (answer.outcome, answer.pool.pool_id) == (pb.RELOAD_OUTCOME_UNKNOWN, "pool-a")
    assert "lost" in answer.detail


async def test_the_caller_is_told_when_another_host_takes_the_pool_over(
    orchestrator: Orchestrator,
) -> None:
    """That host was never told to reload anything."""
    host = await ready_host(orchestrator)
    task, _ = await reload(orchestrator, host, "m.gguf")
    await host.close()
    runtime = orchestrator.server.runtime
    while runtime.hosts.links:
        await runtime.next_step()

    other = orchestrator.host("host-2")
    await other.register(snapshot(host_id="host-2", replica_id="pool-a-2"))
    answer = await asyncio.wait_for(task, WAIT_S)

    assert answer.outcome == pb.RELOAD_OUTCOME_UNKNOWN
    assert "lost" in answer.detail


async def test_what_cannot_be_reloaded_says_why(orchestrator: Orchestrator) -> None:
    """An unknown pool, a host that is away, a reference without end."""
    host = await ready_host(orchestrator)

    async def refused(**fields: object) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await orchestrator.pools.ReloadPool(pb.ReloadPoolRequest(**fields))  # type: ignore[arg-type]
        return error.value.code(), details(error.value)[0].reason

    unknown = await refused(pool_id="other")
    long = await refused(pool_id="pool-a", model_ref="x" * 5_000)
    await host.close()
    runtime = orchestrator.server.runtime
    while runtime.hosts.links:
        await runtime.next_step()
    away = await refused(pool_id="pool-a")

    assert unknown == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert long == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert away == (grpc.StatusCode.UNAVAILABLE, "POOL_UNAVAILABLE")
