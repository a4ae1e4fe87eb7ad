"""What a host says when it registers, and whose word it takes. LO-305, LO-306."""

import asyncio

import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from pool_managerd.link import wire
from tests.integration.pool_managerd.fakes import WAIT_S, ScriptedEngine
from tests.integration.pool_managerd.harness import (
    Host,
    Options,
    RunHost,
    adopt,
    two_pieces_delivered,
)


async def until_frames(host: Host, number: int) -> None:
    """Waits until session `number`, from 0, is obeyed."""
    sessions = host.orchestrator.sessions
    await host.orchestrator.until(lambda: len(sessions) > number and sessions[number].frames)


async def test_a_host_tells_whom_it_obeyed_last(run_host: RunHost) -> None:
    """First nobody, then the journal and its epoch."""
    host = await run_host()
    host.orchestrator.epoch = 5
    host.orchestrator.drop()
    await until_frames(host, 1)
    host.orchestrator.drop()
    await until_frames(host, 2)

    told = [(s.register.journal_id, s.register.epoch) for s in host.orchestrator.sessions]
    assert told == [("", 0), ("journal-1", 1), ("journal-1", 5)]


async def test_another_journal_is_obeyed_at_any_epoch(run_host: RunHost) -> None:
    """Epochs of different journals do not compare; nothing held counts without a verdict."""
    host = await run_host()
    host.orchestrator.epoch = 5
    host.orchestrator.drop()
    await until_frames(host, 1)
    await two_pieces_delivered(host)
    host.orchestrator.journal_id, host.orchestrator.epoch = "journal-2", 1
    # A verdict about something else: what is held is not named.
    host.orchestrator.verdict = lambda _held: dispatch_pb2.AttemptVerdict(
        job_id="other", attempt=1, verdict=dispatch_pb2.HELD_VERDICT_ADOPT, handle=1
    )

    host.orchestrator.drop()
    await until_frames(host, 2)
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.slots_free == 1 and not s.running
    )
    host.orchestrator.drop()
    await until_frames(host, 3)

    assert len(host.orchestrator.sessions[2].register.held) == 1
    last = host.orchestrator.sessions[3].register
    assert (last.journal_id, last.epoch, len(last.held)) == ("journal-2", 1, 0)


async def test_another_journal_may_adopt(run_host: RunHost) -> None:
    """A verdict of ADOPT keeps an attempt, whoever gives it."""
    host = await run_host()
    await two_pieces_delivered(host)
    host.orchestrator.journal_id = "journal-2"
    host.orchestrator.verdict = adopt(first_index=0, handle=9)  # type: ignore[assignment]  # reason: test

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: host.orchestrator.stored(9).text == "ab")

    assert host.engine.open_generations == 1


async def test_a_lower_epoch_of_the_second_journal_is_not_obeyed(run_host: RunHost) -> None:
    """The rule holds within every journal."""
    host = await run_host()
    host.orchestrator.journal_id, host.orchestrator.epoch = "journal-2", 3
    host.orchestrator.drop()
    await until_frames(host, 1)
    host.orchestrator.epoch = 2

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 4)

    assert host.orchestrator.sessions[2].frames == []
    async with asyncio.timeout(WAIT_S):
        await host.orchestrator.sessions[2].closed.wait()


async def test_what_is_held_comes_in_pages(
    run_host: RunHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one message takes is announced with `more`, and adopted all the same."""
    monkeypatch.setattr(wire, "HELD_PER_MESSAGE", 2)
    host = await run_host()
    for handle in range(1, 6):
        await host.start(f"j{handle}", handle)
        host.engine.say(f"j{handle}", "text", end=True)
        await host.orchestrator.until(lambda h=handle: host.orchestrator.stored(h).ended)
        await host.orchestrator.until(
            lambda: (s := host.orchestrator.ready()) is not None and s.slots_free == 1
        )

    host.orchestrator.drop()
    await until_frames(host, 1)

    session = host.orchestrator.sessions[1]
    assert session.held_per_page == [2, 2, 1]
    assert [h.job_id for h in session.register.held] == ["j1", "j2", "j3", "j4", "j5"]


async def test_a_pool_tells_its_determinism_before_its_engine_is_loaded(run_host: RunHost) -> None:
    """A job that needs it may queue for the pool meanwhile. LO-201, LO-304."""

    def never_loads(engine: ScriptedEngine, _number: int) -> None:
        engine.preload_problem = "no model"

    host = await run_host(Options(prepare=never_loads))

    (pool,) = host.orchestrator.sessions[0].register.pools
    assert pool.state != snapshot_pb2.POOL_STATE_READY
    assert pool.deterministic


async def test_a_refusal_is_logged_as_the_orchestrator_said_it(
    run_host: RunHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it meets a read or one of many writes: never as an error of gRPC's own."""
    monkeypatch.setattr(wire, "register_pages", lambda first, _store: [first] * 100)
    host = await run_host()
    refusing = host.orchestrator
    refusing.refusal = (StatusCode.FAILED_PRECONDITION, "another host has this id")

    with capture_logs() as lines:
        refusing.drop()
        await refusing.until(lambda: refusing.refused > 15)

    lost = {line["reason"] for line in lines if line["event"] == "session_lost"}
    assert lost - {"the orchestrator closed the stream"} == {
        "FAILED_PRECONDITION: another host has this id"
    }
