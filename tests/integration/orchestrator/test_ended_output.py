"""Output of jobs that ended early, after a restart of orchestratord. LO-301, LO-305."""

from llamaorch.orchestrator.v1 import events_pb2, job_pb2, orchestrator_service_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.store.memory import MemoryStore
from tests.integration.orchestrator.calls import (
    all_events,
    enqueue,
    follow,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.resuming import refusal
from tests.integration.orchestrator.scripted_host import ScriptedHost, digest, snapshot

HAVE_ALL = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=digest(b"one two "))
SOON = {"reattach_grace_ms": 500}


async def ended_early(
    start_orchestrator: StartOrchestrator, *, fails: bool = False
) -> tuple[Orchestrator, ScriptedHost, str]:
    """A job ended after "one two " before a restart: the new orchestrator, its host, the job."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    receipt = await enqueue(first, failover=job_pb2.FAILOVER_POLICY_FAIL)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ", "two ")
    async for event in follow(first, receipt.job_id):
        if event.HasField("tokens"):
            break
    if fails:
        await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    else:
        await first.jobs.Cancel(orchestrator_service_pb2.CancelRequest(job_id=receipt.job_id))
        # Not on the stream any more: the outcome is decided.
        await host.tokens(start.handle, "three ")
    seen = await all_events(first, receipt.job_id)
    assert text(seen) == "one two "
    await first.close()
    return await start_orchestrator(store, pools=SOON), host, receipt.job_id


async def come_back(
    orchestrator: Orchestrator, boot_id: str, job_id: str, *, ended: bool
) -> tuple[ScriptedHost, int]:
    """The host is back with the attempt, which it holds from the beginning: host, handle."""
    host = orchestrator.host(boot_id=boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=3
    )
    if ended:
        held.ended.SetInParent()
    registered = await host.register(snapshot(), held=(held,))
    (verdict,) = registered.verdicts
    assert verdict.verdict == dispatch_pb2.HELD_VERDICT_ADOPT
    return host, verdict.handle


async def test_a_cancelled_jobs_output_comes_back_from_its_host(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Exactly what it ended with, however the host cuts it and whatever more it has."""
    second, former, job_id = await ended_early(start_orchestrator)
    host, handle = await come_back(second, former.boot_id, job_id, ended=False)
    assert (await host.command("cancel")).cancel.handle == handle, "it ran on"

    await host.tokens(handle, "one ", "two ", "three ")
    await host.finish(handle, job_pb2.FINISH_REASON_CANCELLED)
    events = await all_events(second, job_id)

    assert kinds(events) == ["started", "tokens", "end"]
    assert text(events) == "one two "
    end = events[-1].end
    assert (end.state, end.text_bytes) == (job_pb2.JOB_STATE_CANCELLED, 8)
    assert end.text_digest == digest(b"one two ")


async def test_a_failed_jobs_output_comes_before_its_error(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The error says how much there was, as it did before the restart."""
    second, former, job_id = await ended_early(start_orchestrator, fails=True)
    host, handle = await come_back(second, former.boot_id, job_id, ended=True)

    await host.tokens(handle, "one ", "two ")
    events = await all_events(second, job_id)

    assert kinds(events) == ["started", "tokens", "error"]
    assert text(events) == "one two "


async def test_output_that_no_host_holds_is_out_of_the_window(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The outcome does not come without the text before it; who has that text is told at once."""
    second, _, job_id = await ended_early(start_orchestrator)

    told = await all_events(second, job_id, HAVE_ALL)

    assert kinds(told) == ["end"]
    assert told[-1].end.text_bytes == 8
    assert await refusal(second, job_id) == ("RESUME_WINDOW", "0")
