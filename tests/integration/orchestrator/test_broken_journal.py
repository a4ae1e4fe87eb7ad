"""A journal that cannot be written, is slow, or hangs, as clients see it."""

import asyncio

import grpc
import pytest
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core import commit, server
from orchestrator_core.store.memory import CommitFault, MemoryStore
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    follow,
    job,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.stores import SlowStore

WAIT_S = 5.0


async def test_unwritable_journal_refuses_jobs_while_streams_go_on(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Enqueue is STORE_UNAVAILABLE with a delay, the running job loses nothing, then all heals."""
    broken = False

    def faults(_: int, __: object) -> CommitFault:
        return CommitFault.UNAVAILABLE if broken else CommitFault.NONE

    orchestrator = await start_orchestrator(MemoryStore(faults))
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    broken = True

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator)
    await host.tokens(start.handle, "still ", "here")
    await host.finish(start.handle)
    broken = False
    events = await all_events(orchestrator, receipt.job_id)
    later = await enqueue(orchestrator)

    info, others = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info.reason == "STORE_UNAVAILABLE"
    assert "RetryInfo" in others
    assert text(events) == "still here"
    assert kinds(events)[-1] == "end"
    assert (await host.start()).job_id == later.job_id


async def test_a_reader_is_not_told_of_an_end_that_is_taken_back(
    start_orchestrator: StartOrchestrator,
) -> None:
    """A job that gave its place to one whose accept fails waits, whoever asks while it is open."""
    store = SlowStore()
    orchestrator = await start_orchestrator(store, queue={"capacity": 1, "policy": "drop-lru"})
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    await enqueue(orchestrator)
    await host.start()
    victim = (await enqueue(orchestrator)).job_id
    store.moving.clear()
    newcomer = asyncio.create_task(enqueue(orchestrator))
    await asyncio.wait_for(store.waiting.wait(), WAIT_S)
    jobs = orchestrator.jobs
    reads = [
        asyncio.create_task(job(orchestrator, victim)),
        asyncio.ensure_future(jobs.ExplainJob(pb.ExplainJobRequest(job_id=victim))),
        asyncio.ensure_future(jobs.ListJobs(pb.ListJobsRequest())),
    ]
    gate = orchestrator.server.runtime._gate
    async with asyncio.timeout(WAIT_S):
        while len(gate._pending.readers) < len(reads):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)

    store.broken = True
    store.moving.set()
    got, explained, listed = await asyncio.gather(*reads)
    with pytest.raises(grpc.aio.AioRpcError):
        await newcomer

    told = [got, explained.job, *(j for j in listed.jobs if j.job_id == victim)]
    assert [j.state for j in told] == [job_pb2.JOB_STATE_QUEUED] * 3


async def test_a_cancel_that_cannot_be_written_stops_the_engine_and_is_answered(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is free at once; the caller learns that nothing is certain yet, readers the end."""
    # The write begins a little after the call whose patience it outlasts.
    monkeypatch.setattr(commit, "SLOW_S", 0.1)
    store = SlowStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")
    following = follow(orchestrator, receipt.job_id)
    await anext(following)
    store.moving.clear()
    request = pb.CancelRequest(job_id=receipt.job_id)

    cancelling = asyncio.ensure_future(orchestrator.jobs.Cancel(request))
    stopped = await host.command("cancel")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(cancelling, WAIT_S)
    with capture_logs() as lines:
        await host.finish(start.handle, job_pb2.FINISH_REASON_CANCELLED)
        store.moving.set()
        events = [event async for event in following]
        again = await orchestrator.jobs.Cancel(request)

    assert stopped.cancel.handle == start.handle
    assert details(caught.value)[0].reason == "STORE_UNAVAILABLE"
    assert "has not answered for 1 s" in str(caught.value.details())
    assert "store_slow" in {line["event"] for line in lines}
    assert events[-1].end.finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert again.job.state == job_pb2.JOB_STATE_CANCELLED


async def test_an_accept_whose_commit_is_uncertain_is_answered_as_the_journal_says(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Written after all: accepted. Not written: refused, and the job is not known."""
    verdicts = [CommitFault.UNKNOWN_WRITTEN, CommitFault.UNKNOWN_LOST]

    def faults(_: int, __: object) -> CommitFault:
        return verdicts.pop(0) if verdicts else CommitFault.NONE

    orchestrator = await start_orchestrator(MemoryStore(faults))
    host = await ready_host(orchestrator)

    written = await enqueue(orchestrator, job_id="written")
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await enqueue(orchestrator, job_id="lost")
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await job(orchestrator, "lost")

    assert (await host.start()).job_id == written.job_id == "written"
    assert details(lost.value)[0].reason == "STORE_UNAVAILABLE"
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


class HungStore(MemoryStore):
    """A journal whose disk does not answer when it is closed, until it `answers`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def close(self) -> None:
        """Waits for the disk."""
        await self.answers.wait()


async def test_a_journal_that_hangs_keeps_no_server_from_stopping(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and not waited for: all that was told is in the journal."""
    monkeypatch.setattr(server, "JOURNAL_CLOSE_S", 0.01)
    store = HungStore()
    orchestrator = await start_orchestrator(store)

    with capture_logs() as lines:
        stopping = asyncio.create_task(orchestrator.server.stop())
        over, _ = await asyncio.wait([stopping], timeout=6 * WAIT_S)
    store.answers.set()

    assert over
    assert "journal_not_closed" in {line["event"] for line in lines}
