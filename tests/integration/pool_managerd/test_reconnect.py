"""What happens when the stream, or the orchestrator, goes away and comes back."""

import asyncio
import hashlib
import time

import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from tests.integration.pool_managerd.fakes import WAIT_S
from tests.integration.pool_managerd.harness import RunHost, adopt, two_pieces_delivered


async def test_an_adopted_attempt_goes_on_at_the_exact_index(run_host: RunHost) -> None:
    """Output made while nobody listened is kept and sent from the index asked for.

    LO-301, LO-305.
    """
    host = await run_host()
    await two_pieces_delivered(host)
    host.orchestrator.verdict = adopt(first_index=1, handle=9)  # type: ignore[assignment]  # reason: test

    await host.orchestrator.stop()
    host.engine.say("j1", "c", "d", end=True)
    await host.orchestrator.start()
    out = host.orchestrator.stored(9)
    await host.orchestrator.until(lambda: out.ended)

    held = host.orchestrator.sessions[-1].register.held
    assert [(h.job_id, h.attempt, h.first_index, h.next_index) for h in held] == [("j1", 1, 0, 4)]
    assert held[0].HasField("ended")
    assert out.text == "bcd"
    assert out.batches[0].first_index == 1
    assert len(host.engine.requests) == 1


@pytest.mark.parametrize("job_cancelled", [True, False])
async def test_a_later_orchestrator_is_told_that_the_job_was_cancelled(
    run_host: RunHost, *, job_cancelled: bool
) -> None:
    """As the order said that stopped the attempt: the host is the witness of a crash. LO-305."""
    host = await run_host()
    await two_pieces_delivered(host)
    host.orchestrator.verdict = adopt(first_index=0, handle=9)  # type: ignore[assignment]  # reason: test
    order = dispatch_pb2.CancelAttempt(handle=1, job_cancelled=job_cancelled)

    host.orchestrator.send(cancel=order)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)
    host.orchestrator.drop()
    out = host.orchestrator.stored(9)
    await host.orchestrator.until(lambda: out.ended)

    held = host.orchestrator.sessions[-1].register.held
    assert held[0].ended.finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert [held[0].ended.job_cancelled, out.ended[0].job_cancelled] == [job_cancelled] * 2


async def test_an_attempt_survives_a_broken_stream_while_it_runs(run_host: RunHost) -> None:
    """A stream that breaks costs the attempt nothing: later pieces follow on the next stream."""
    host = await run_host()
    await two_pieces_delivered(host)
    host.orchestrator.verdict = adopt(first_index=2, handle=1)  # type: ignore[assignment]  # reason: test

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    host.engine.say("j1", "c", end=True)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.text == "abc"
    assert not host.orchestrator.sessions[1].register.held[0].HasField("ended")


async def test_a_replay_can_be_adopted_from_its_beginning(run_host: RunHost) -> None:
    """An orchestrator that lost its text gets all of it, also what the replay repeated. LO-305."""
    host = await run_host()
    point = events_pb2.ResumePoint(attempt=1, text_offset=2)
    point.prefix_digest = int.from_bytes(hashlib.sha256(b"ab").digest()[:8], "big")
    await host.start("j1", 1, attempt=2, verify_until=point)
    host.engine.say("j1", "a", "b", "c", attempt=2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text == "c")
    host.orchestrator.verdict = adopt(first_index=0, handle=2)  # type: ignore[assignment]  # reason: test

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).text == "abc")

    assert host.orchestrator.sessions[1].register.held[0].first_index == 0


async def test_a_verdict_of_abort_stops_the_attempt_and_forgets_it(run_host: RunHost) -> None:
    """What does not count is stopped, its slot freed and its output dropped."""
    host = await run_host()
    await two_pieces_delivered(host)

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.newest()) is not None and s.slots_free == 1
    )

    assert host.engine.open_generations == 0
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 3)
    assert host.orchestrator.sessions[2].register.held == []


async def test_seek_sends_held_output_again(run_host: RunHost) -> None:
    """Output that was sent once is sent again from the piece asked for. LO-301."""
    host = await run_host()
    await two_pieces_delivered(host)

    host.orchestrator.send(seek=dispatch_pb2.SeekTokens(handle=1, first_index=1))
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text == "abb")

    assert host.orchestrator.stored(1).batches[-1].first_index == 1


async def test_an_epoch_of_the_past_is_not_obeyed(run_host: RunHost) -> None:
    """A host that has seen epoch 5 refuses epoch 4, and says so by leaving."""
    host = await run_host()
    host.orchestrator.epoch = 5
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    await host.orchestrator.until(lambda: host.orchestrator.sessions[1].frames)
    host.orchestrator.epoch = 4

    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 4)

    assert host.orchestrator.sessions[2].register.epoch == 5
    assert host.orchestrator.sessions[2].frames == []
    async with asyncio.timeout(WAIT_S):
        await host.orchestrator.sessions[2].closed.wait()


async def test_a_silent_host_sends_heartbeats_and_leaves_a_silent_orchestrator(
    run_host: RunHost,
) -> None:
    """Empty frames keep the stream alive; silence of the other side ends it.

    The next stream has a connection of its own: the silent one may be silent for that too.
    """
    host = await run_host()
    host.orchestrator.heartbeat_ms, host.orchestrator.silent = 300, True
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)

    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 3)

    heartbeats = host.orchestrator.sessions[1].frames
    assert len(heartbeats) >= 2
    assert not any(f.refused or f.started or f.ended or f.tokens.handles for f in heartbeats)
    assert len({session.peer for session in host.orchestrator.sessions}) == 3


async def test_a_host_that_may_come_back_too_late_says_so(
    run_host: RunHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """Waits between tries that do not fit into the grace of the orchestrator are named. LO-305."""
    host = await run_host()
    said = []
    for grace_ms in (4 * 50, 4 * 50 - 1):  # the longest wait of these hosts is 50 ms
        capsys.readouterr()
        host.orchestrator.reattach_grace_ms = grace_ms
        sessions = len(host.orchestrator.sessions)
        host.orchestrator.drop()
        await host.orchestrator.until(
            lambda sessions=sessions: (
                len(host.orchestrator.sessions) > sessions and host.orchestrator.sessions[-1].frames
            )
        )
        said.append("backoff_too_long" in capsys.readouterr().out)

    assert said == [False, True]


async def test_frame_numbers_grow_over_all_streams(run_host: RunHost) -> None:
    """frame_seq never repeats within one boot, and the boot id stays. Design 5.4."""
    host = await run_host()
    await two_pieces_delivered(host)
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    await host.orchestrator.until(lambda: host.orchestrator.sessions[1].frames)

    numbers = [f.frame_seq for s in host.orchestrator.sessions for f in s.frames]
    assert numbers == sorted(set(numbers))
    assert len({s.register.boot_id for s in host.orchestrator.sessions}) == 1
    dials = [s.register.dial_seq for s in host.orchestrator.sessions]
    assert dials[0] >= 1
    assert dials == sorted(set(dials)), "each stream is told from those before it"


async def test_a_stalled_host_keeps_its_stream(run_host: RunHost) -> None:
    """What could not be heard is not silence: after a pause the orchestrator has its time anew."""
    host = await run_host()
    host.orchestrator.heartbeat_ms = 600
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    await two_pieces_delivered(host)

    time.sleep(2.0)  # noqa: ASYNC251 - the stall
    host.engine.say("j1", "c", end=True)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.text == "abc"
    assert len(host.orchestrator.sessions) == 2


async def test_attempts_outlive_a_stalled_orchestrator(run_host: RunHost) -> None:
    """The host leaves a silent stream, keeps what it runs, and comes back with it."""
    host = await run_host()
    host.orchestrator.heartbeat_ms = 300
    host.orchestrator.verdict = adopt(first_index=2, handle=1)  # type: ignore[assignment]  # reason: test
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)
    await two_pieces_delivered(host)

    host.orchestrator.silent = True
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 3)
    host.engine.say("j1", "c", end=True)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert [h.job_id for h in host.orchestrator.sessions[2].register.held] == ["j1"]
    assert out.text == "abc"
    assert len(host.engine.requests) == 1
