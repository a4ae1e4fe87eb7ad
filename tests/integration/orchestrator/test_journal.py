"""The journal as clients see it: restarts, failures, and what they never lose."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pools_pb
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core import cancels
from orchestrator_core.clock import wall_s
from orchestrator_core.config.schema import Config
from orchestrator_core.core.events import Tick
from orchestrator_core.core.records import Record
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import CannotStartError
from orchestrator_core.process import run
from orchestrator_core.store.memory import MemoryJournal, MemoryStore
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    job,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.orchestrator.stores import SlowStore

WAIT_S = 5.0


async def test_after_a_run_with_a_wrong_clock_deadlines_are_understood(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The journal ends in the future, where a later run goes on; its clients are not there."""
    now_s = wall_s()
    wrong = MemoryJournal(pruned_last_ms=int(now_s * 1000) + 8 * 3_600_000)
    orchestrator = await start_orchestrator(MemoryStore(journal=wrong))
    host = await ready_host(orchestrator)
    deadline = Timestamp()
    deadline.FromSeconds(int(now_s) + 3_600)

    receipt = await enqueue(orchestrator, deadline=deadline)
    start = await host.start()

    assert 0 < start.remaining_ms <= 3_601_000
    assert (await job(orchestrator, receipt.job_id)).state == job_pb2.JOB_STATE_DISPATCHED


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
