"""Engines that die and hosts that go away and come back."""

import grpc
import pytest
from google.rpc import error_details_pb2

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from tests.integration.orchestrator.calls import (
    all_events,
    enqueue,
    follow,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import digest, snapshot

CONTINUE = job_pb2.FAILOVER_POLICY_CONTINUE


async def test_engine_death_before_output_is_retried_silently(orchestrator: Orchestrator) -> None:
    """Nothing was delivered, so the job runs again and its stream shows only whole text."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    await host.command("release")
    again = snapshot(replica_id="pool-a-2", emitted_frame_seq=host.frame_seq)
    async with host.reports() as reports:
        await reports.send(again)
        second = await host.start()
        await host.started(second.handle)
        await host.tokens(second.handle, "fine")
        await host.finish(second.handle)
        events = await all_events(orchestrator, receipt.job_id)

    assert (second.job_id, second.attempt) == (receipt.job_id, 2)
    assert text(events) == "fine"
    assert kinds(events) == ["started", "tokens", "end"]


async def test_engine_death_after_output_is_worker_reset(orchestrator: Orchestrator) -> None:
    """With failover FAIL the stream ends with a typed error, never like a finished one."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, failover=job_pb2.FAILOVER_POLICY_FAIL)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "half a sen")
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)

    events = await all_events(orchestrator, receipt.job_id)

    assert kinds(events) == ["started", "tokens", "error"]
    assert events[-1].error.code == grpc.StatusCode.ABORTED.value[0]
    info = error_details_pb2.ErrorInfo()
    assert events[-1].error.details[0].Unpack(info)
    assert info.reason == "WORKER_RESET"
    assert info.metadata["text_offset"] == str(len("half a sen"))


async def test_verified_replay_goes_on_at_the_byte(orchestrator: Orchestrator) -> None:
    """A greedy job is generated again; the pool is told what to verify, the stream goes on."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, sampling=job_pb2.Sampling(temperature=0.0))
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    async with host.reports() as reports:
        await reports.send(snapshot(replica_id="pool-a-2", emitted_frame_seq=host.frame_seq))
        second = await host.start()
        await host.started(second.handle)
        released = (await host.command("release")).release
        await host.tokens(second.handle, "one ")
        await host.tokens(second.handle, "two")
        await host.finish(second.handle)
        events = await all_events(orchestrator, receipt.job_id)

    assert list(released.handles) == [start.handle]
    assert second.verify_until.text_offset == 4
    assert second.verify_until.prefix_digest == digest(b"one ")
    assert kinds(events) == ["started", "tokens", "resumed", "tokens", "end"]
    assert text(events) == "one two"


async def test_host_that_returns_goes_on_with_its_attempts(orchestrator: Orchestrator) -> None:
    """After a cut the attempt is adopted and its output continues at the exact piece."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "before ")
    stream = follow(orchestrator, receipt.job_id)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.WhichOneof("event") == "tokens":
            break
    await host.close()

    back = orchestrator.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=receipt.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=1
    )
    answer = await back.register(snapshot(), held=(held,))
    verdict = answer.verdicts[0]
    back.goes_on(verdict.handle, "before ", pieces=1)
    await back.tokens(verdict.handle, "after")
    await back.finish(verdict.handle)
    seen.extend([event async for event in stream])

    assert verdict.verdict == dispatch_pb2.HELD_VERDICT_ADOPT
    assert verdict.first_index == 1
    assert text(seen) == "before after"
    assert kinds(seen)[-1] == "end"


@pytest.mark.parametrize("failover", [job_pb2.FAILOVER_POLICY_VERIFIED_REPLAY, CONTINUE])
async def test_a_host_that_returns_too_late_takes_nothing_from_the_next_attempt(
    start_orchestrator: StartOrchestrator, failover: job_pb2.FailoverPolicy.ValueType
) -> None:
    """Its attempt proves what was delivered until the next one, sent already, has started."""
    orchestrator = await start_orchestrator(pools={"reattach_grace_ms": 100})
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, failover=failover)
    first = await host.start()
    await host.started(first.handle)
    await host.tokens(first.handle, "one ")
    async for event in follow(orchestrator, receipt.job_id):
        if event.WhichOneof("event") == "tokens":
            break
    other = orchestrator.host("host-2")
    await other.register(snapshot("pool-b", host_id="host-2"))
    await host.close()
    second = await other.start()

    back = orchestrator.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=receipt.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1", next_index=1
    )
    answer = await back.register(snapshot(), held=(held,))
    await other.started(second.handle)
    if failover == CONTINUE:
        other.goes_on(second.handle, "one ", pieces=1)
    else:
        await other.tokens(second.handle, "one ")
    await other.tokens(second.handle, "two")
    await other.finish(second.handle)
    events = await all_events(orchestrator, receipt.job_id)

    assert [verdict.verdict for verdict in answer.verdicts] == [dispatch_pb2.HELD_VERDICT_ADOPT]
    assert text(events) == "one two"
    assert kinds(events) == ["started", "tokens", "resumed", "tokens", "end"]


async def test_unknown_held_attempt_is_aborted(orchestrator: Orchestrator) -> None:
    """A host that still runs what nobody knows is told to stop it."""
    host = orchestrator.host()
    held = dispatch_pb2.HeldAttempt(
        job_id="ghost", attempt=1, pool_id="pool-a", replica_id="pool-a-1"
    )

    answer = await host.register(snapshot(), held=(held,))

    assert [verdict.verdict for verdict in answer.verdicts] == [dispatch_pb2.HELD_VERDICT_ABORT]
