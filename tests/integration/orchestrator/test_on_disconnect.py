"""What becomes of a job to which nobody listens, over sockets. LO-303."""

import asyncio

import grpc

from llamaorch.orchestrator.v1 import events_pb2, job_pb2, orchestrator_service_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.store.memory import MemoryStore
from tests.integration.orchestrator.calls import all_events, enqueue, job, kinds, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot

WAIT_S = 20.0
CANCEL = job_pb2.ON_DISCONNECT_CANCEL
SOON = {"disconnect_grace_ms": 50}


async def observe(orchestrator: Orchestrator, job_id: str) -> list[events_pb2.JobEvent]:
    """Every event of a job as a watcher that must not keep it alive."""
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=job_id, observer=True)
    async with asyncio.timeout(WAIT_S):
        return [
            event
            async for response in orchestrator.jobs.StreamTokens(request)
            for event in response.events
        ]


async def test_a_job_is_cancelled_after_its_last_listener_has_left(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The engine is told to stop, and the slot is free once it has."""
    orchestrator = await start_orchestrator(jobs=SOON)
    host = await ready_host(orchestrator)
    # The stream is open before the grace is over: the job waits for it.
    receipt = await enqueue(orchestrator, on_disconnect=CANCEL)
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=receipt.job_id)
    call = orchestrator.jobs.StreamTokens(request)
    start = await host.start()
    await host.started(start.handle)
    await asyncio.wait_for(call.read(), WAIT_S)

    call.cancel()

    assert (await host.command("cancel")).cancel.handle == start.handle
    await host.finish(start.handle, job_pb2.FINISH_REASON_CANCELLED)
    assert (await job(orchestrator, receipt.job_id)).state == job_pb2.JOB_STATE_CANCELLED


async def test_an_observer_does_not_keep_a_job_alive(
    start_orchestrator: StartOrchestrator,
) -> None:
    """It sees the cancel of a job to which nobody else ever listened."""
    orchestrator = await start_orchestrator(jobs=SOON)
    await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, on_disconnect=CANCEL)

    events = await observe(orchestrator, receipt.job_id)

    assert events[-1].end.state == job_pb2.JOB_STATE_CANCELLED


async def test_a_job_that_nobody_follows_after_a_restart_is_cancelled(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Recovery arms the grace, whoever listened before."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    receipt = await enqueue(first, on_disconnect=CANCEL)
    start = await host.start()
    await host.started(start.handle)
    await first.close()

    second = await start_orchestrator(store, jobs=SOON)
    back = second.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=receipt.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1"
    )
    await back.register(snapshot(), held=(held,))

    events = await observe(second, receipt.job_id)

    assert events[-1].end.state == job_pb2.JOB_STATE_CANCELLED


async def test_by_default_a_job_runs_on_without_listeners(
    start_orchestrator: StartOrchestrator,
) -> None:
    """CONTINUE: its output is there for whoever comes later."""
    orchestrator = await start_orchestrator(jobs={"disconnect_grace_ms": 1})
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=receipt.job_id)
    call: grpc.aio.Call = orchestrator.jobs.StreamTokens(request)
    call.cancel()
    await host.tokens(start.handle, "all")
    await host.finish(start.handle)

    assert kinds(await all_events(orchestrator, receipt.job_id)) == ["started", "tokens", "end"]
