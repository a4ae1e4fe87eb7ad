"""Snapshots against the frames that were emitted before them. Design 5.4, LO-203, LO-204."""

import asyncio
import random

import pytest

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from tests.integration.pool_managerd.fakes import FakeOrchestrator
from tests.integration.pool_managerd.harness import Host, Options, RunHost

JOBS = 60
WAIT_S = 20.0
SLOTS = 4


async def run_many(host: Host) -> None:
    """Starts jobs faster than slots free up, cancels some of them, and waits for all."""
    dice = random.Random(7)  # noqa: S311 - a fixed seed, so that the run repeats
    replica_id = await host.ready()
    for number in range(1, JOBS + 1):
        await host.start(f"j{number}", number, replica_id=replica_id)
        texts = ["word "] * dice.randrange(5)
        host.engine.say(f"j{number}", *texts, end=dice.random() < 0.7)
        if dice.random() < 0.4:
            host.orchestrator.send(cancel=dispatch_pb2.CancelAttempt(handle=number))
        if number % SLOTS == 0:
            await host.orchestrator.until(lambda n=number: settled(host.orchestrator, n - 3))
    for number in range(1, JOBS + 1):
        host.orchestrator.send(cancel=dispatch_pb2.CancelAttempt(handle=number))
    await host.orchestrator.until(
        lambda: all(settled(host.orchestrator, number) for number in range(1, JOBS + 1))
    )


def settled(orchestrator: FakeOrchestrator, handle: int) -> bool:
    """True when the attempt was refused, has ended, or runs on without an end."""
    out = orchestrator.stored(handle)
    return bool(out.refused or out.ended or out.started)


async def test_slots_are_never_exceeded_and_every_attempt_is_answered_once(
    run_host: RunHost,
) -> None:
    """However starts and cancels arrive, generations never outnumber slots. LO-204."""
    host = await run_host(Options(slots=SLOTS))

    await run_many(host)
    await host.orchestrator.until(
        lambda: all(
            host.orchestrator.stored(n).refused or host.orchestrator.stored(n).ended
            for n in range(1, JOBS + 1)
        )
    )

    assert host.engine.most_open <= SLOTS
    for number in range(1, JOBS + 1):
        out = host.orchestrator.stored(number)
        assert len(out.refused) + len(out.ended) == 1
        if out.ended and out.ended[0].finish_reason == job_pb2.FINISH_REASON_EOS:
            assert out.ended[0].text_bytes == len(out.text)


async def test_a_snapshot_never_contradicts_the_frames_that_it_names(run_host: RunHost) -> None:
    """What ended in a frame that a snapshot names is not running in it, and the frame exists."""
    host = await run_host(Options(slots=SLOTS))

    await run_many(host)
    newest = host.orchestrator.newest()
    assert newest is not None
    frames = [frame for session in host.orchestrator.sessions for frame in session.frames]
    last_seq = max(frame.frame_seq for frame in frames)
    await host.orchestrator.until(
        lambda: (
            max(s.emitted_frame_seq for s in host.orchestrator.snapshots)
            <= max(f.frame_seq for s in host.orchestrator.sessions for f in s.frames)
        )
    )

    assert last_seq > 1
    ended_in = {
        f"j{ended.handle}": frame.frame_seq
        for session in host.orchestrator.sessions
        for frame in session.frames
        for ended in frame.ended
    }
    seen_running = False
    for snapshot in host.orchestrator.snapshots:
        running = {attempt.job_id for attempt in snapshot.running}
        seen_running = seen_running or bool(running)
        assert snapshot.slots_free + len(running) == snapshot.slots_total
        for job_id in running:
            assert ended_in.get(job_id, 1 << 60) > snapshot.emitted_frame_seq
    assert seen_running


async def test_versions_grow_and_acknowledgements_are_echoed(run_host: RunHost) -> None:
    """Every snapshot of an incarnation has a higher version; reports prove their freshness."""
    host = await run_host()
    await host.ready()

    await host.orchestrator.until(lambda: len(host.orchestrator.acks) >= 3)

    versions = [snapshot.version for snapshot in host.orchestrator.snapshots]
    assert versions == sorted(set(versions))
    assert host.orchestrator.acks[0] == 0
    assert 0 < host.orchestrator.acks[2] <= 2


async def test_why_a_pool_is_refused_is_logged_once(
    run_host: RunHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every report gets the same answer; another reason is news."""
    host = await run_host()
    for why in ("in use", "malformed"):
        rejection = registry_pb2.SnapshotRejection(pool_id="p0", reason=why)
        host.orchestrator.rejections[:] = [rejection]
        reports = len(host.orchestrator.acks)
        await host.orchestrator.until(lambda seen=reports: len(host.orchestrator.acks) >= seen + 4)

    captured = capsys.readouterr()
    told = [line for line in (captured.out + captured.err).splitlines() if "snapshot_rej" in line]
    assert ["in use" in line for line in told] == [True, False]


async def test_a_finished_session_is_expected_to_be_warm(run_host: RunHost) -> None:
    """The session that a slot served last is named, and its next attempt starts warm. ORCH-3009."""
    host = await run_host()
    for handle, session in ((1, "s1"), (2, "s1"), (3, "s2"), (4, "s1")):
        await host.start(f"j{handle}", handle, session_id=session)
        host.engine.say(f"j{handle}", "x", end=True)
        await host.orchestrator.until(lambda h=handle: host.orchestrator.stored(h).ended)

    warmth = [host.orchestrator.stored(handle).started[0].kv_warmth for handle in (1, 2, 3, 4)]

    assert warmth == [False, True, False, False]


async def test_a_new_engine_holds_nothing_of_a_session_that_the_former_one_served(
    run_host: RunHost,
) -> None:
    """Whose attempt lets go of its slot once the next engine is ready. ORCH-3009."""
    host = await run_host()
    first, former = await host.ready(), host.engine
    former.lets_go.clear()
    await host.start("j1", 1, session_id="s1")
    host.engine.say("j1", "x")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text)

    former.die()
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) is not None and ready.replica_id != first
    )
    former.lets_go.set()
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)
    await host.start("j2", 2, session_id="s1")
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).started)

    assert [start.kv_warmth for start in host.orchestrator.stored(2).started] == [False]


async def test_a_pool_that_does_not_change_is_reported_beside_one_that_always_does(
    run_host: RunHost,
) -> None:
    """Else it would count as silent: no job would be placed there while the other one is busy."""
    pools = [{"pool_id": pool_id, "engine": {"kind": "mock"}} for pool_id in ("p0", "p1")]
    host = await run_host(Options(config={"pools": pools, "report_interval_ms": 50}))
    for pool_id in ("p0", "p1"):
        await host.orchestrator.until(lambda p=pool_id: host.orchestrator.ready(p))
    before = len([s for s in host.orchestrator.snapshots if s.pool_id == "p1"])

    async with asyncio.timeout(WAIT_S):
        while len([s for s in host.orchestrator.snapshots if s.pool_id == "p1"]) < before + 3:
            host.manager._feed.publish("p0")
            await asyncio.sleep(0.005)
