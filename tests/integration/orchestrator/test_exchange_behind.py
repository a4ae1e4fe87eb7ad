"""Followers on an Exchange whose place is no longer held here, or who do not read. LO-306."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.relay import sides
from tests.integration.orchestrator.calls import job, ready_host, spec
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.exchange_plays import reason
from tests.integration.orchestrator.exchange_stream import Stream
from tests.integration.orchestrator.scripted_host import ScriptedHost, digest


async def test_acknowledged_output_is_dropped(orchestrator: Orchestrator) -> None:
    """What every follower has acknowledged is not held any longer; the rest is."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue(job_id="acked")
    other = await stream.ask(subscribe=pb.ExchangeSubscribe(job_id="acked"))
    start = await host.start()
    await host.started(start.handle)
    for _ in range(4):
        await host.tokens(start.handle, "x" * 100)
    await stream.text_bytes(result.handle, 400)
    await stream.text_bytes(other.handle, 400)
    relay = orchestrator.server.runtime.relay
    held = relay.bytes_held

    await stream.ack(handles=[result.handle], text_offsets=[400])
    one = relay.bytes_held
    taken = await stream.ack(handles=[result.handle, other.handle], text_offsets=[400, 200])
    both = relay.log("acked")

    assert one == held
    assert taken.acknowledged_handles == 2
    assert both.oldest_offset == 200
    assert both.bytes_held == relay.bytes_held < held


async def test_the_final_acknowledgement_releases_the_output_at_the_host(
    orchestrator: Orchestrator,
) -> None:
    """The host may forget the attempt long before retention ends; the job stays known."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue()
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "done with")
    await host.finish(start.handle)
    await stream.ended(result.handle)

    taken = await stream.ack(final_handles=[result.handle])
    release = (await host.command("release")).release
    twice = await stream.ack(final_handles=[result.handle])

    assert (taken.acknowledged_handles, twice.acknowledged_handles) == (1, 0)
    assert list(release.handles) == [start.handle]
    assert orchestrator.server.runtime.relay.bytes_held == 0
    assert (await job(orchestrator, result.enqueued.job_id)).state == job_pb2.JOB_STATE_FINISHED


async def fallen_behind(
    start_orchestrator: StartOrchestrator,
) -> tuple[Stream, ScriptedHost, pb.ExchangeResult, int]:
    """A job that ended, a subscription of it that lacks evicted text, the handle at the host."""
    orchestrator = await start_orchestrator(jobs={"output_bytes_per_job": 4_096})
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    behind = await stream.enqueue(credit_bytes=0)
    start = await host.start()
    await host.started(start.handle)
    for _ in range(20):
        await host.tokens(start.handle, "y" * 400)
    await host.finish(start.handle)
    other = await stream.ask(
        subscribe=pb.ExchangeSubscribe(
            job_id=behind.enqueued.job_id,
            resume_from=events_pb2.ResumePoint(
                attempt=1, text_offset=7_600, prefix_digest=digest(b"y" * 7_600)
            ),
        )
    )
    await stream.ended(other.handle)
    assert stream.text(other.handle) == "y" * 400
    return stream, host, behind, start.handle


async def test_a_subscription_that_fell_behind_is_brought_its_text(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-301: what was evicted comes from the host, as far as there is credit for it."""
    stream, host, behind, handle = await fallen_behind(start_orchestrator)
    asked: list[int] = []

    async def send_again() -> None:
        while True:
            first = (await host.command("seek")).seek.first_index
            asked.append(first)
            host.goes_on(handle, "y" * 400 * first, first)
            for _ in range(first, 20):
                await host.tokens(handle, "y" * 400)

    sending = asyncio.create_task(send_again())
    await stream.ack(handles=[behind.handle], credit_bytes=[401])
    await stream.text_bytes(behind.handle, 401)
    await stream.ask(cancel=pb.ExchangeCancel(job_id=behind.enqueued.job_id))
    with_credit = stream.text(behind.handle)
    await stream.ack(handles=[behind.handle], credit_bytes=[100_000])
    await stream.ended(behind.handle)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert len(with_credit) == 800
    assert stream.text(behind.handle) == "y" * 8_000
    assert stream.kinds(behind.handle)[0] == "started"
    assert stream.kinds(behind.handle)[-1] == "end"
    assert asked[:2] == [0, 20]
    assert stream.broken == {}
    assert await stream.close() is grpc.StatusCode.OK


async def test_a_subscription_breaks_alone_where_its_host_has_evicted_too(
    start_orchestrator: StartOrchestrator,
) -> None:
    """It is told RESUME_WINDOW, the stream goes on."""
    stream, host, behind, handle = await fallen_behind(start_orchestrator)

    await stream.ack(handles=[behind.handle], credit_bytes=[1])
    await host.command("seek")
    host.goes_on(handle, "y" * 1_200, 3)
    await host.tokens(handle, "y" * 400)
    await stream.until(lambda: behind.handle in stream.broken)

    assert reason(stream.broken[behind.handle].error) == "RESUME_WINDOW"
    assert stream.outcomes(behind.handle) == []
    assert await stream.close() is grpc.StatusCode.OK


async def test_who_leaves_while_text_is_on_its_way_is_sent_none(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a handle follows `unsubscribe`, and its host goes on at once."""
    monkeypatch.setattr(sides, "PATIENCE_S", 600.0)
    stream, host, behind, handle = await fallen_behind(start_orchestrator)

    await stream.ack(handles=[behind.handle], credit_bytes=[100_000])
    await host.command("seek")
    left = await stream.ask(unsubscribe=pb.ExchangeUnsubscribe(handle=behind.handle))
    after = (await host.command("seek")).seek.first_index
    host.goes_on(handle, "", 0)
    await host.tokens(handle, "y" * 400)

    assert left.unsubscribed_job_id == behind.enqueued.job_id
    assert after == 20
    assert await stream.close() is grpc.StatusCode.OK
    assert stream.text(behind.handle) == ""


async def test_a_client_that_does_not_read_costs_bounded_memory(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The relay keeps its bound per job; another follower gets everything meanwhile. LO-302."""
    orchestrator = await start_orchestrator(jobs={"output_bytes_per_job": 64 * 1024})
    host = await ready_host(orchestrator)
    idle = Stream(orchestrator, reading=False)
    await idle.send(enqueue=pb.ExchangeEnqueue(spec=spec(job_id="big"), subscribe=True))
    start = await host.start()
    await host.started(start.handle)
    other = Stream(orchestrator)
    handle = (await other.ask(subscribe=pb.ExchangeSubscribe(job_id="big"))).handle
    relay = orchestrator.server.runtime.relay
    most = 0
    size, count = 32 * 1024, 64

    for number in range(count):
        await host.tokens(start.handle, "z" * size)
        await other.text_bytes(handle, (number + 1) * size)
        most = max(most, relay.bytes_held)
    await host.finish(start.handle)
    await other.ended(handle)

    assert most <= 64 * 1024 + size + 1_024
    assert len(other.text(handle)) == size * count
    await idle.cut()
