"""Jobs that another engine continues from the delivered text. LO-305."""

import pytest
from google.rpc import error_details_pb2

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as orchestrator_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core import carrying
from orchestrator_core.core.states import JobState
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
from tests.integration.orchestrator.scripted_host import ScriptedHost, digest, snapshot

CONTINUE = job_pb2.FAILOVER_POLICY_CONTINUE


async def test_a_continuation_goes_on_from_the_delivered_text(orchestrator: Orchestrator) -> None:
    """LO-304: another replica set gets the text and what is left of max_tokens."""
    host = await ready_host(orchestrator)
    sampling = job_pb2.Sampling(max_tokens=5, seed=7)
    receipt = await enqueue(orchestrator, failover=CONTINUE, sampling=sampling)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "één ", "twee ")
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    other = orchestrator.host(host_id="host-2")
    await other.register(snapshot("pool-b", host_id="host-2", model_digest="sha256:01"))

    second = await other.start()
    await other.started(second.handle, kv_warmth=True)
    other.goes_on(second.handle, "één twee ", pieces=2)
    await other.tokens(second.handle, "drie")
    await other.finish(second.handle)
    events = await all_events(orchestrator, receipt.job_id)

    text_so_far = "één twee ".encode()
    assert (second.attempt, second.continue_text) == (2, "één twee ")
    assert second.continue_from.text_offset == len(text_so_far)
    assert second.continue_from.prefix_digest == digest(text_so_far)
    assert (second.continue_index, second.continue_tokens) == (2, 2)
    assert not second.continue_token_ids, "another model has other tokens"
    assert (second.sampling.max_tokens, second.sampling.seed) == (3, 7)
    assert kinds(events) == ["started", "tokens", "resumed", "tokens", "end"]
    assert text(events) == "één twee drie"
    resumed = next(event.resumed for event in events if event.HasField("resumed"))
    assert (resumed.attempt, resumed.mode) == (2, events_pb2.RESUME_MODE_CONTINUE)
    assert resumed.text_offset == len(text_so_far)
    assert not resumed.kv_warmth, "ORCH-3009"
    assert events[-1].end.text_digest == digest("één twee drie".encode())


async def test_a_continuation_of_all_that_was_asked_for_ends_there(
    orchestrator: Orchestrator,
) -> None:
    """The engine died after its last token and before its end: nothing is left to generate."""
    host = await ready_host(orchestrator)
    sampling = job_pb2.Sampling(max_tokens=2)
    receipt = await enqueue(orchestrator, failover=CONTINUE, sampling=sampling)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ", "two ")
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    async with host.reports() as reports:
        await reports.send(snapshot(replica_id="pool-a-2", emitted_frame_seq=host.frame_seq))
        events = await all_events(orchestrator, receipt.job_id)

    assert text(events) == "one two "
    assert events[-1].end.finish_reason == job_pb2.FINISH_REASON_LENGTH
    assert events[-1].end.usage.tokens_out == 2


async def with_evicted_text(
    start_orchestrator: StartOrchestrator,
) -> tuple[Orchestrator, ScriptedHost, str, bytes]:
    """A job whose engine died after more text than is kept here; its host, its id, that text."""
    jobs, placement = {"output_bytes_per_job": 4_096}, {"refusal_backoff_ms": 10_000}
    orchestrator = await start_orchestrator(jobs=jobs, placement=placement)
    host = await ready_host(orchestrator)
    sampling = job_pb2.Sampling(max_tokens=800)
    receipt = await enqueue(orchestrator, failover=CONTINUE, sampling=sampling)
    start = await host.start()
    await host.started(start.handle)
    pieces = [f"{number:03d} " for number in range(600)]
    for begin in range(0, 600, 10):
        await host.tokens(start.handle, *pieces[begin : begin + 10])
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    return orchestrator, host, receipt.job_id, "".join(pieces).encode()


async def test_a_host_that_holds_evicted_text_goes_on_from_it(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-304: length and digest name it; what is left of max_tokens only the host can count."""
    orchestrator, host, job_id, so_far = await with_evicted_text(start_orchestrator)
    async with host.reports() as reports:
        await reports.send(snapshot(replica_id="pool-a-2", emitted_frame_seq=host.frame_seq))
        second = await host.start()
    await host.started(second.handle)
    host.goes_on(second.handle, so_far.decode(), pieces=600)
    await host.tokens(second.handle, "end")
    await host.finish(second.handle)
    point = events_pb2.ResumePoint(attempt=1, text_offset=len(so_far), prefix_digest=digest(so_far))
    events = await all_events(orchestrator, job_id, point)

    assert (second.attempt, second.continue_text, second.continue_tokens) == (2, "", 0)
    assert second.continue_from == point
    assert second.sampling.max_tokens == 800
    assert text(events) == "end"
    assert events[-1].end.text_digest == digest(so_far + b"end")


async def on_another_host(orchestrator: Orchestrator, host: ScriptedHost) -> ScriptedHost:
    """Another host, whose pool gets the continuation; the first one is asked for its text."""
    other = orchestrator.host(host_id="host-2")
    await other.register(snapshot("pool-b", host_id="host-2"))
    sought = (await host.command("seek")).seek
    assert (sought.handle, sought.first_index) == (1, 0)
    return other


async def test_evicted_text_is_brought_from_the_host_that_holds_it(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-304: a pool of another host goes on from it, and readers have all of it once."""
    orchestrator, host, job_id, so_far = await with_evicted_text(start_orchestrator)
    other = await on_another_host(orchestrator, host)
    host.goes_on(1, "", pieces=0)
    for begin in range(0, 600, 10):
        await host.tokens(1, *(f"{number:03d} " for number in range(begin, begin + 10)))
    second = await other.start()
    await other.started(second.handle)
    other.goes_on(second.handle, so_far.decode(), pieces=600)
    await other.tokens(second.handle, "end")
    await other.finish(second.handle)
    point = events_pb2.ResumePoint(attempt=1, text_offset=len(so_far), prefix_digest=digest(so_far))
    events = await all_events(orchestrator, job_id, point)

    assert (second.attempt, second.continue_tokens, second.sampling.max_tokens) == (2, 600, 200)
    assert second.continue_text.encode() == so_far
    assert second.continue_from == point
    assert text(events) == "end"
    assert events[-1].end.text_digest == digest(so_far + b"end")


async def test_evicted_text_that_no_host_holds_is_not_continued(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-304: a typed end, which says what to do."""
    orchestrator, host, job_id, so_far = await with_evicted_text(start_orchestrator)
    await on_another_host(orchestrator, host)
    host.goes_on(1, so_far[:1_200].decode(), pieces=300)
    await host.tokens(1, "300 ")
    point = events_pb2.ResumePoint(attempt=1, text_offset=len(so_far), prefix_digest=digest(so_far))

    events = await all_events(orchestrator, job_id, point)

    info = error_details_pb2.ErrorInfo()
    assert kinds(events) == ["error"]
    assert events[-1].error.details[0].Unpack(info)
    assert (info.reason, info.metadata["text_offset"]) == ("WORKER_RESET", str(len(so_far)))
    assert "no longer held; enqueue the job again" in events[-1].error.message


async def test_a_continuation_that_breaks_as_its_text_comes_ends(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LO-304: a bug costs the job its text, and keeps no slot."""
    orchestrator, host, job_id, so_far = await with_evicted_text(start_orchestrator)
    await on_another_host(orchestrator, host)
    # What fails is what the text is given to.
    monkeypatch.setattr(carrying, "continuation", None)
    host.goes_on(1, so_far[:1_200].decode(), pieces=300)
    await host.tokens(1, "300 ")
    point = events_pb2.ResumePoint(attempt=1, text_offset=len(so_far), prefix_digest=digest(so_far))

    events = await all_events(orchestrator, job_id, point)

    assert kinds(events) == ["error"]
    assert "no longer held; enqueue the job again" in events[-1].error.message
    assert orchestrator.server.runtime.core.live_attempts == 0


async def test_a_host_that_left_before_the_text_came_costs_no_try(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-304: nothing was sent there, so the job waits for another place."""
    orchestrator, host, job_id, _ = await with_evicted_text(start_orchestrator)
    other = await on_another_host(orchestrator, host)
    runtime = orchestrator.server.runtime
    await other.close()
    while "host-2" in runtime.hosts.links:
        await runtime.next_step()
    host.goes_on(1, "", pieces=0)
    for begin in range(0, 600, 10):
        await host.tokens(1, *(f"{number:03d} " for number in range(begin, begin + 10)))
    while runtime.core.live_attempts:
        await runtime.next_step()

    job = runtime.core.jobs[job_id]

    assert job.state is JobState.QUEUED
    assert (job.failures, job.refusals) == (1, 1), "one try failed: that whose engine died"


async def test_a_cancel_does_not_wait_for_text_that_is_brought(
    start_orchestrator: StartOrchestrator,
) -> None:
    """ORCH-3026: the attempt never begins, and its slot is free."""
    orchestrator, host, job_id, _ = await with_evicted_text(start_orchestrator)
    other = await on_another_host(orchestrator, host)

    answer = await orchestrator.jobs.Cancel(orchestrator_pb2.CancelRequest(job_id=job_id))
    held = orchestrator.server.runtime.core.live_attempts
    following = await enqueue(orchestrator)
    started = await other.start()

    assert answer.job.state == job_pb2.JOB_STATE_CANCELLED
    assert held == 0
    assert started.job_id == following.job_id


async def restarted_after_text(
    start_orchestrator: StartOrchestrator,
) -> tuple[Orchestrator, ScriptedHost, str]:
    """An orchestrator without its relay log; the host whose attempt had produced text; the job."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    receipt = await enqueue(first, failover=CONTINUE)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ", "two ")
    async for event in follow(first, receipt.job_id):
        if event.HasField("tokens"):
            break
    await first.close()
    return await start_orchestrator(store), host, receipt.job_id


async def test_after_a_restart_lost_output_is_not_continued(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-305: a client may hold text that nobody else does: a typed end that says so."""
    second, _, job_id = await restarted_after_text(start_orchestrator)
    back = second.host(boot_id="anew")
    await back.register(snapshot(replica_id="pool-a-2"))

    events = await all_events(second, job_id)

    info = error_details_pb2.ErrorInfo()
    assert kinds(events) == ["error"]
    assert events[-1].error.details[0].Unpack(info)
    assert info.reason == "WORKER_RESET"
    assert "no longer held" in events[-1].error.message


async def test_after_a_restart_output_that_came_back_is_continued(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-305: the host held all of it, and its end says that this was all."""
    second, former, job_id = await restarted_after_text(start_orchestrator)
    back = second.host(boot_id=former.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=2
    )
    answer = await back.register(snapshot(), held=(held,))
    handle = answer.verdicts[0].handle
    await back.started(handle)
    await back.tokens(handle, "one ", "two ")
    await back.fail(handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    async with back.reports() as reports:
        await reports.send(snapshot(replica_id="pool-a-2", emitted_frame_seq=back.frame_seq))
        again = await back.start()

    assert again.continue_text == "one two "
    assert again.continue_from.prefix_digest == digest(b"one two ")
