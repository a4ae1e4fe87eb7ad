"""What a bug in the core does: the process ends instead of going on with half a decision."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1.orchestrator_service_pb2 import CancelRequest
from orchestrator_core.core import intake
from orchestrator_core.store.memory import MemoryJournal, MemoryStore
from orchestrator_core.store.port import StoreTakenError
from tests.integration.orchestrator.calls import all_events, details, enqueue, job, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator

WAIT_S = 20.0


async def test_an_orchestrator_whose_journal_was_taken_over_ends(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Two that decide about the same jobs are worse than none; who waits is told so. LO-305."""
    journal = MemoryJournal()
    old = await start_orchestrator(MemoryStore(journal=journal))
    host = await ready_host(old)
    running = await enqueue(old)
    await host.start()
    following = asyncio.create_task(all_events(old, running.job_id))
    failing = asyncio.create_task(old.server.wait_failed())
    new = await start_orchestrator(MemoryStore(journal=journal))

    with pytest.raises(grpc.aio.AioRpcError) as enqueuing:
        await enqueue(old)
    with pytest.raises(StoreTakenError, match="another orchestrator"):
        await asyncio.wait_for(failing, WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as asking:
        await job(old, running.job_id)
    with pytest.raises(grpc.aio.AioRpcError) as cancelling:
        await old.jobs.Cancel(CancelRequest(job_id=running.job_id))
    await old.server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as followed:
        await following

    for refused in (enqueuing, asking, cancelling):
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(refused.value)[0].reason == "STORE_UNAVAILABLE"
    assert followed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert set(new.server.runtime.core.jobs) == {running.job_id}


async def test_a_pause_lets_nobody_read_before_the_journal_was_asked(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stood still may have been replaced, and would tell what is out of date. LO-305."""
    journal = MemoryJournal()
    old = await start_orchestrator(MemoryStore(journal=journal))
    await ready_host(old)
    running = await enqueue(old)
    await start_orchestrator(MemoryStore(journal=journal))
    clock = old.server.runtime.clock
    now_ms = clock.now_ms() + 10_000
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)

    with pytest.raises(grpc.aio.AioRpcError) as known:
        await job(old, running.job_id)
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await job(old, "a-job-of-the-other")

    for refused in (known, unknown):
        assert details(refused.value)[0].reason == "STORE_UNAVAILABLE"


async def test_a_step_that_breaks_brings_the_server_down(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told INTERNAL, nothing more is decided, and the server reports the failure."""
    await ready_host(orchestrator)
    failing = asyncio.create_task(orchestrator.server.wait_failed())

    def broken(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(intake, "schedule", broken)
    with pytest.raises(grpc.aio.AioRpcError) as first:
        await enqueue(orchestrator)
    with pytest.raises(KeyError, match="planted"):
        await asyncio.wait_for(failing, WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as second:
        await enqueue(orchestrator)

    assert first.value.code() is second.value.code() is grpc.StatusCode.INTERNAL
    assert "planted" not in (first.value.details() or "")
