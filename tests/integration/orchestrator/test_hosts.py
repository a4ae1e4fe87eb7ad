"""Hosts that fall silent, report or lie, over real gRPC."""

import asyncio
import time
from collections.abc import Callable

import grpc
import pytest

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.hosts.registration import POOLS_PER_HOST_MAX
from orchestrator_core.wire.jobs import SPEC_BYTES_MAX
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    kinds,
    ready_host,
    spec,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.host_links import PATIENT, SHORT, connected, until_connected
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot

# --- silence


async def test_a_silent_host_is_given_up(start_orchestrator: StartOrchestrator) -> None:
    """No frame for the heartbeat timeout ends the link."""
    orchestrator = await start_orchestrator(pools=SHORT, **PATIENT)
    await ready_host(orchestrator)

    await until_connected(orchestrator)


async def test_heartbeats_keep_a_link(start_orchestrator: StartOrchestrator) -> None:
    """Empty frames are enough, for longer than the timeout."""
    orchestrator = await start_orchestrator(pools=SHORT, **PATIENT)
    host = await ready_host(orchestrator)

    for _ in range(10):
        await host.frame()
        await asyncio.sleep(0.1)

    assert connected(orchestrator) == ["host-1"]


async def test_a_stalled_event_loop_drops_no_host(start_orchestrator: StartOrchestrator) -> None:
    """What could not be heard is not silence: a late wake-up gives the host a fresh interval."""
    orchestrator = await start_orchestrator(pools=SHORT, **PATIENT)
    host = await ready_host(orchestrator)
    link = orchestrator.server.runtime.hosts.links["host-1"]

    time.sleep(1.2)  # noqa: ASYNC251 - the stall
    await asyncio.sleep(0.1)
    await host.frame()
    await asyncio.sleep(0.1)

    assert orchestrator.server.runtime.hosts.links["host-1"] is link


async def test_a_host_that_vanishes_is_no_bug_of_ours(
    start_orchestrator: StartOrchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Connections that break in the middle are logged as lost hosts, never as internal errors."""
    orchestrator = await start_orchestrator(pools=SHORT, **PATIENT)
    for _ in range(5):
        channel = grpc.aio.insecure_channel(str(orchestrator.server.address))
        host = ScriptedHost(channel, "host-1", "boot")
        await host.register(snapshot())
        await host.frame()
        await channel.close(0)
        await until_connected(orchestrator)

    captured = capsys.readouterr()
    assert "internal_error" not in captured.out + captured.err


# --- snapshots that do not belong


async def test_a_snapshot_in_another_hosts_name_is_not_registered(
    orchestrator: Orchestrator,
) -> None:
    """Its pool would get jobs that nobody runs; the good pool beside it works."""
    host = orchestrator.host()
    await host.register(snapshot("pool-x", host_id="host-2"), snapshot("pool-a"))
    await enqueue(orchestrator)

    start = await host.start()

    assert start.pool_id == "pool-a"
    assert list(orchestrator.server.runtime.core.pools) == ["pool-a"]
    assert list(orchestrator.server.runtime.hosts.reported) == ["pool-a"]


async def test_reports_name_what_does_not_belong(orchestrator: Orchestrator) -> None:
    """Another host's snapshot and an unregistered pool are refused by name."""
    host = await ready_host(orchestrator)
    async with host.reports() as reports:
        answer = await reports.send(
            snapshot(version=2, slots_free=1),
            snapshot(host_id="host-2", version=3),
            snapshot("pool-new"),
        )

    reasons = [(r.pool_id, r.reason) for r in answer.rejections]
    assert reasons == [
        ("pool-a", "host_id 'host-2' is not that of the stream, 'host-1'"),
        ("pool-new", "pool_id was not registered"),
    ]
    assert orchestrator.server.runtime.hosts.reported["pool-a"].version == 2


async def test_a_flood_of_snapshots_is_one_log_line(
    orchestrator: Orchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's report is not even looked at, a host's has a bound, and is told of now and then.

    A pool that was refused is reported every second, for as long as nobody mends it.
    """
    bad = snapshot_pb2.PoolSnapshot(pool_id="p", slots_free=99)
    async with orchestrator.host("never-registered").reports() as reports:
        assert not (await reports.send(*[bad] * 20_000)).rejections
    host = await ready_host(orchestrator)
    async with host.reports() as reports:
        too_many = await reports.send(*[bad] * (POOLS_PER_HOST_MAX + 1))
        for _ in range(3):
            many = await reports.send(*[bad] * POOLS_PER_HOST_MAX)

    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("snapshot_refused") == 2
    assert len(too_many.rejections) == 1
    assert len(many.rejections) == POOLS_PER_HOST_MAX


async def test_pools_that_are_gone_leave_the_metrics(orchestrator: Orchestrator) -> None:
    """A host that comes back without its pool takes the last snapshot with it."""
    hosts = orchestrator.server.runtime.hosts
    first = await ready_host(orchestrator)
    assert list(hosts.reported) == ["pool-a"]

    await orchestrator.host(boot_id=first.boot_id).register()

    assert hosts.reported == {}
    link = hosts.links["host-1"]
    assert link.pool_ids == frozenset()


async def test_broken_output_is_logged_with_what_finds_its_job(
    entries: Callable[[str], list[dict[str, object]]], orchestrator: Orchestrator
) -> None:
    """The caller's correlation id and the job's trace, not those of the host's stream."""
    host = await ready_host(orchestrator)
    given = pb.EnqueueRequest(spec=spec())
    receipt = await orchestrator.jobs.Enqueue(given, metadata=(("x-correlation-id", "mine"),))
    start = await host.start()
    await host.started(start.handle)
    broken = host.token_frames(start.handle, "one ")
    broken.chunks[0] = b"\xff"

    await host.frame(tokens=broken)
    await all_events(orchestrator, receipt.job_id)

    (line,) = entries("output_malformed")
    (accepted,) = entries("job_accepted")
    assert (line["job_id"], line["correlation_id"]) == (receipt.job_id, "mine")
    assert line["trace_id"] == accepted["trace_id"]


async def test_a_job_whose_output_is_broken_fails(orchestrator: Orchestrator) -> None:
    """Its followers are told the outcome, its host stops, and the slot takes the next job."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")
    broken = host.token_frames(start.handle, "two ")
    broken.chunks[0] = b"\xff"

    await host.frame(tokens=broken)
    events = await all_events(orchestrator, receipt.job_id)
    cancel = (await host.command("cancel")).cancel
    await enqueue(orchestrator)

    assert kinds(events) == ["started", "tokens", "error"]
    assert "host host-1 sent broken output" in str(events[-1])
    assert cancel.handle == start.handle
    assert (await host.start()).attempt == 1


# --- the send window


async def test_a_little_text_is_acknowledged_soon(start_orchestrator: StartOrchestrator) -> None:
    """A piece larger than the rest of the window would else wait for ever."""
    orchestrator = await start_orchestrator(pools={"send_window_bytes": 65_536})
    host = await ready_host(orchestrator)
    await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)

    await host.tokens(start.handle, "x" * 200)
    ack = (await host.command("ack")).ack

    assert (list(ack.handles), list(ack.text_offsets)) == ([start.handle], [200])


async def test_a_quarter_of_the_window_is_acknowledged_at_once(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Two frames within one quarter share an acknowledgement; a full quarter gets its own."""
    orchestrator = await start_orchestrator(pools={"send_window_bytes": 65_536})
    host = await ready_host(orchestrator)
    await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)

    await host.tokens(start.handle, "x" * 16_384)
    await host.tokens(start.handle, "y")
    await host.tokens(start.handle, "z")
    acks = [(await host.command("ack")).ack.text_offsets[0] for _ in range(2)]

    assert acks == [16_384, 16_386]


async def test_a_frame_that_cannot_be_read_ends_that_stream_alone(
    orchestrator: Orchestrator,
) -> None:
    """Its host is told the field, registers anew, and sends what was lost with it again. LO-302."""
    host, other = orchestrator.host(), orchestrator.host("host-2")
    await host.register(snapshot())
    await other.register(snapshot("pool-b", host_id="host-2", model_id="other"))
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")

    await host.frame(tokens=dispatch_pb2.TokenFrames(handles=[start.handle], text_offsets=[4, 5]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.command("start")
    await until_connected(orchestrator, "host-2")
    again = orchestrator.host(boot_id=host.boot_id)
    held_again = dispatch_pb2.HeldAttempt(
        job_id=receipt.job_id,
        attempt=1,
        pool_id="pool-a",
        replica_id=start.replica_id,
        next_index=2,
    )
    answer = await again.register(snapshot(), held=[held_again])

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, found = details(refused.value)
    fields = {violation.field for violation in found["BadRequest"].field_violations}  # type: ignore[attr-defined]
    assert "frame.tokens.text_offsets" in fields
    assert [v.verdict for v in answer.verdicts] == [dispatch_pb2.HELD_VERDICT_ADOPT]
    assert answer.verdicts[0].first_index == 1


# --- the longest job


async def test_the_longest_job_that_is_accepted_can_be_sent(orchestrator: Orchestrator) -> None:
    """A job whose command fits into no message would cost its host the stream, again and again."""
    host = await ready_host(orchestrator)
    request = pb.EnqueueRequest(spec=spec())
    request.spec.sampling.engine_options["note"] = ""
    room = SPEC_BYTES_MAX - request.spec.ByteSize() - 128
    request.spec.sampling.engine_options["note"] = "b" * room
    longest = await orchestrator.jobs.Enqueue(request)
    request.spec.sampling.engine_options["note"] = "b" * (room + 60_000)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.jobs.Enqueue(request)
    start = await host.start()

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert start.job_id == longest.job_id
    assert connected(orchestrator) == [host.host_id]
