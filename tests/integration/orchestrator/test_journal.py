"""The journal as clients see it: restarts, failures, and what they never lose."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pools_pb
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core import cancels, commit, server
from orchestrator_core.config.schema import Config
from orchestrator_core.core.events import Tick
from orchestrator_core.core.records import Record
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import CannotStartError
from orchestrator_core.process import run
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
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.orchestrator.stores import SlowStore

WAIT_S = 5.0


async def test_restart_keeps_waiting_running_and_ended_jobs(
    start_orchestrator: StartOrchestrator,
) -> None:
    """After a crash the waiting job waits, the running one is adopted, the ended one is known."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first, slots_total=1, slots_free=1)
    ended = await enqueue(first, request_id="r-ended")
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "old")
    await host.finish(start.handle)
    await all_events(first, ended.job_id)
    running = await enqueue(first)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ", "two ")
    waiting = await enqueue(first)
    await first.close()

    second = await start_orchestrator(store)
    back = second.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=running.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=2
    )
    answer = await back.register(snapshot(slots_total=1, slots_free=1), held=(held,))
    verdict = answer.verdicts[0]
    await back.tokens(verdict.handle, "one ", "two ", "three")
    await back.finish(verdict.handle)
    events = await all_events(second, running.job_id)
    next_start = await back.start()
    repeated = await enqueue(second, request_id="r-ended")

    assert (await job(second, ended.job_id)).state == job_pb2.JOB_STATE_FINISHED
    assert (verdict.verdict, verdict.first_index) == (dispatch_pb2.HELD_VERDICT_ADOPT, 0)
    assert text(events) == "one two three"
    assert kinds(events)[-1] == "end"
    assert next_start.job_id == waiting.job_id
    assert (repeated.job_id, repeated.duplicate) == (ended.job_id, True)
    assert answer.epoch == 2


async def test_output_of_an_ended_job_is_read_again_after_a_restart(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The outcome waits for the text, which the host still holds and sends again."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    receipt = await enqueue(first)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "all ", "of it")
    await host.finish(start.handle)
    await all_events(first, receipt.job_id)
    await first.close()

    second = await start_orchestrator(store)
    following = asyncio.create_task(all_events(second, receipt.job_id))
    back = second.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=receipt.job_id,
        attempt=1,
        pool_id="pool-a",
        replica_id="pool-a-1",
        next_index=2,
        ended=dispatch_pb2.AttemptEnded(finish_reason=job_pb2.FINISH_REASON_EOS),
    )
    verdict = (await back.register(snapshot(), held=(held,))).verdicts[0]
    await back.started(verdict.handle)
    await back.tokens(verdict.handle, "all ", "of it")
    events = await asyncio.wait_for(following, WAIT_S)

    assert text(events) == "all of it"
    assert kinds(events) == ["started", "tokens", "end"]


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


async def test_nothing_is_forgotten_before_its_end_is_durable(
    start_orchestrator: StartOrchestrator,
) -> None:
    """While the disk stands still the host keeps the output, and the id stays taken."""
    store = SlowStore()
    orchestrator = await start_orchestrator(
        store, jobs={"retention_ms": 20, "idempotency_ttl_ms": 20}
    )
    host = await ready_host(orchestrator)
    await enqueue(orchestrator, job_id="mine")
    start = await host.start()
    store.moving.clear()
    await host.finish(start.handle)
    await asyncio.wait_for(store.waiting.wait(), WAIT_S)
    await asyncio.sleep(0.03)  # the retention
    orchestrator.server.runtime.submit(Tick())

    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await enqueue(orchestrator, job_id="mine", input=job_pb2.JobInput(text="another"))
    store.moving.set()
    released = await host.command("release")
    again = await enqueue(orchestrator, job_id="mine")

    assert details(taken.value)[0].reason == "DUPLICATE"
    assert list(released.release.handles) == [start.handle]
    assert again.job_id == "mine"


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


async def test_an_engine_is_stopped_once_the_end_of_its_job_is_durable(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before it leaves a job that goes on, not one whose engine was stopped. Design §6."""
    monkeypatch.setattr(cancels, "HOLD_S", 3_600.0)
    store = SlowStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")
    store.moving.clear()

    request = pb.CancelRequest(job_id=receipt.job_id)
    cancelling = asyncio.ensure_future(orchestrator.jobs.Cancel(request))
    await asyncio.wait_for(store.waiting.wait(), WAIT_S)
    reloading = orchestrator.pools.ReloadPool(pools_pb.ReloadPoolRequest(pool_id="pool-a"))
    await host.command("reload")  # which would come after the cancel, had that been sent
    store.moving.set()
    stopped = await host.command("cancel")
    answered = await cancelling
    reloading.cancel()

    assert stopped.cancel.handle == start.handle
    assert answered.job.state == job_pb2.JOB_STATE_CANCELLED


async def test_a_cancel_waits_for_the_start_that_it_stops(
    start_orchestrator: StartOrchestrator,
) -> None:
    """What is cancelled before its dispatch is durable is still stopped at its host."""
    store = SlowStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    store.moving.clear()
    enqueuing = asyncio.create_task(enqueue(orchestrator, job_id="mine"))
    await asyncio.wait_for(store.waiting.wait(), WAIT_S)
    cancelling = asyncio.create_task(orchestrator.server.runtime.cancel("mine"))
    await asyncio.sleep(0)  # it is decided, and waits for the journal

    store.moving.set()
    start = await host.start()
    stopped = await host.command("cancel")

    assert stopped.cancel.handle == start.handle
    assert (await cancelling).state is JobState.CANCELLED
    assert (await enqueuing).job_id == "mine"


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


class WaitingStore(MemoryStore):
    """A journal whose commits wait while `gate` is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, batch: Sequence[Record]) -> None:
        """See `Store.commit`."""
        await self.gate.wait()
        await super().commit(batch)


async def test_text_of_a_job_that_was_cancelled_before_its_start_is_not_told(
    start_orchestrator: StartOrchestrator,
) -> None:
    """While the outcome waits for the journal no token comes without `started`. LO-301."""
    store = WaitingStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    following = asyncio.create_task(all_events(orchestrator, receipt.job_id))
    store.gate.clear()
    asked = pb.GetCapabilitiesRequest()
    request = pb.CancelRequest(job_id=receipt.job_id)
    cancelling = asyncio.ensure_future(orchestrator.jobs.Cancel(request))
    core = orchestrator.server.runtime.core
    async with asyncio.timeout(WAIT_S):
        while core.jobs[receipt.job_id].live:
            await orchestrator.jobs.GetCapabilities(asked)
    await host.started(start.handle)
    await host.tokens(start.handle, "too ", "late")
    async with asyncio.timeout(WAIT_S):
        while orchestrator.server.runtime.hosts.links["host-1"].frame_seq < host.frame_seq:
            await orchestrator.jobs.GetCapabilities(asked)
    store.gate.set()
    await cancelling

    assert kinds(await asyncio.wait_for(following, WAIT_S)) == ["end"]


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


def contents(directory: Path) -> list[Path]:
    """What is in a directory."""
    return list(directory.iterdir())


async def test_who_cannot_listen_leaves_nothing_behind(tmp_path: Path) -> None:
    """No journal, no folder of recordings, and a journal that is there keeps its epoch."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config.model_validate(
            {
                "listen": f"127.0.0.1:{taken.getsockname()[1]}",
                "store": {"path": str(tmp_path / "state" / "journal.db")},
            }
        )
        port = taken.getsockname()[1]
        told = (
            rf"^listen: cannot listen on 127\.0\.0\.1:{port}: Address already in use: set another"
        )
        with capture_logs() as logged, pytest.raises(CannotStartError, match=told):
            await run(config)

    # What never began has not stopped either.
    assert logged == []
    assert contents(tmp_path) == []
