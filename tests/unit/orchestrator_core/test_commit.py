"""Output commit: what leaves, when, and what a failed journal takes back."""

import asyncio

import pytest

from orchestrator_core import commit
from orchestrator_core.commit import BUSY_RECORDS, FULL_RECORDS, GATHER_S
from orchestrator_core.core.effects import ConfirmEnd, ReplyState, SendRelease
from orchestrator_core.store.port import (
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
)
from tests.unit.orchestrator_core.commit_bench import WAIT_S, accept, reply, running, terminal


async def test_nothing_leaves_before_its_batch_is_durable() -> None:
    """The reply is released by the commit, not by the step."""
    async with running() as run:
        run.gate.add([accept("a")], [reply("a")])
        await run.committing()
        before = list(run.released)

        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert before == []
    assert run.released == [reply("a")]


@pytest.mark.parametrize("bound_s", [0.0, 3_600.0])
async def test_a_write_that_took_long_is_told(
    bound_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing failed, so nothing else would say why callers were refused."""
    monkeypatch.setattr(commit, "SLOW_S", bound_s)
    async with running() as run:
        run.gate.add([accept("a")], [reply("a")])
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert len(run.slow) == (bound_s == 0.0)
    assert run.released == [reply("a")]


async def test_effects_without_records_wait_for_what_was_decided_before_them() -> None:
    """An effect that rests on an earlier step's records does not overtake them."""
    async with running() as run:
        run.gate.add([accept("a")], [reply("a")])
        await run.committing()

        run.gate.add([], [reply("b")])

        assert run.released == []
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)
    assert run.released == [reply("a"), reply("b")]


async def test_steps_during_a_commit_share_the_next_batch() -> None:
    """Group commit: one batch in flight, everything else in the next."""
    async with running() as run:
        run.gate.add([accept("a")], [])
        await run.committing()
        run.gate.add([accept("b")], [])
        run.gate.add([accept("c")], [])
        for _ in range(2):
            run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.store.batches == [[accept("a")], [accept("b"), accept("c")]]


async def test_failed_batch_reverts_accepts_and_repeats_terminals() -> None:
    """An accept that was not written never happened; an outcome is written again."""
    record, ended = terminal("old")
    async with running() as run:
        run.gate.add([accept("new"), record], [reply("new"), ended])
        await run.committing()
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await run.committing()
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.reverted == [("new",)]
    assert run.refused == [reply("new")]
    assert run.store.batches[1] == [record]
    assert run.released == [ended]


async def test_victim_of_a_reverted_accept_is_not_ended() -> None:
    """The terminal of a job displaced by a failed accept is dropped with it."""
    record, ended = terminal("victim")
    async with running() as run:
        run.gate.add([record, accept("new", displaced="victim")], [ended, reply("new")])
        await run.committing()
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.released == []
    assert run.store.batches == [[record, accept("new", displaced="victim")]]


async def test_what_is_over_is_forgotten_and_released_after_its_end_is_durable() -> None:
    """Neither leaves before; of a victim that comes back neither leaves at all. LO-305."""
    record, ended = terminal("old")
    victim_record, victim_ended = terminal("victim")
    release, ask = SendRelease("host", "old", 1), ConfirmEnd("old")
    async with running() as run:
        run.gate.add([record], [ended])
        await run.committing()
        run.gate.add([], [ask, release])
        run.gate.add(
            [victim_record, accept("new", displaced="victim")], [victim_ended, reply("new")]
        )
        run.gate.add([], [ConfirmEnd("victim")])
        before = list(run.released)
        run.store.verdicts.put_nowait(None)
        await run.committing()
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert before == []
    assert run.released == [ended, ask, release]


async def test_a_job_with_the_id_of_a_returning_victim_is_taken_back() -> None:
    """The victim is accepted still, and the journal holds no two jobs of one id."""
    record, ended = terminal("victim")
    async with running() as run:
        run.gate.add([record, accept("new", displaced="victim")], [ended, reply("new")])
        await run.committing()
        run.gate.add([accept("victim"), accept("other")], [reply("victim"), reply("other")])
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await run.committing()
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.reverted == [("new", "victim")]
    assert run.refused == [reply("new"), reply("victim")]
    assert run.store.batches[1] == [accept("other")]
    assert run.released == [reply("other")]


async def test_unknown_outcome_is_read_back_before_anybody_is_answered() -> None:
    """A commit that may have happened counts as what the store then says."""
    async with running() as run:
        run.gate.add([accept("a")], [reply("a")])
        await run.committing()
        run.store.verdicts.put_nowait(StoreOutcomeUnknownError("connection cut"))
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.released == [reply("a")]
    assert run.reverted == []


async def test_gate_is_degraded_until_the_next_try() -> None:
    """While a failure is fresh callers are refused at once; then one is let through again."""
    async with running() as run:
        run.gate.add([accept("a")], [reply("a")])
        await run.committing()
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await asyncio.wait_for(run.failed.wait(), WAIT_S)
        during = run.gate.degraded
        await asyncio.wait_for(run.gate.flush(), WAIT_S)
        after = run.gate.degraded
        run.gate.add([accept("b")], [reply("b")])
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert (during, after) == (True, False)
    assert run.released == [reply("b")]


async def test_cancel_of_a_victim_is_answered_when_the_victim_returns() -> None:
    """Nobody waits for ever: a reply that a failed commit made untrue is refused."""
    record, ended = terminal("victim")
    cancelled = ReplyState(9, "victim")
    async with running() as run:
        run.gate.add([record, accept("new", displaced="victim")], [ended, reply("new")])
        await run.committing()
        run.gate.add([], [cancelled, reply("victim")])
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.refused == [reply("new"), cancelled]
    assert run.released == [reply("victim")]


async def test_replies_that_nobody_awaits_do_not_pile_up() -> None:
    """Cancels repeated while the disk stands still leave nothing behind; others are answered."""
    async with running() as run:
        run.gate.add([accept("a")], [])
        await run.committing()
        run.gate.add([], [ReplyState(0, "kept")])
        most = 0
        for number in range(1, 100):
            run.gate.add([], [ReplyState(number, "a")])
            run.gone.add(number)
            run.gate.give_up()
            most = max(most, len(run.gate._pending.gated))
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert most <= 3
    assert run.released[0] == ReplyState(0, "kept")
    assert len(run.released) <= 3


async def test_a_failed_batch_is_repeated_without_replies_that_nobody_awaits() -> None:
    """Who left while the batch was under way is not kept for the next."""
    record, ended = terminal("a")
    async with running() as run:
        run.gate.add([record], [ended, ReplyState(1, "a"), ReplyState(2, "a")])
        await run.committing()
        run.gone.add(1)
        run.gate.give_up()
        run.store.verdicts.put_nowait(StoreUnavailableError("disk full"))
        await run.committing()
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.released == [ended, ReplyState(2, "a")]


async def test_readers_that_left_do_not_pile_up() -> None:
    """A read that was given up is forgotten at once, wherever its batch is."""
    async with running() as run:
        run.gate.add([accept("a")], [])
        await run.committing()
        reading = asyncio.create_task(run.gate.settled())
        await asyncio.sleep(0)
        waiting = len(run.gate._pending.readers)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

        assert (waiting, len(run.gate._pending.readers)) == (1, 0)
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)


async def test_readers_wait_for_what_was_decided_before_them() -> None:
    """A read answers once the batches that were under way when it came are durable."""
    async with running() as run:
        await asyncio.wait_for(run.gate.settled(), WAIT_S)
        run.gate.add([accept("a")], [])
        await run.committing()
        reading = asyncio.create_task(run.gate.settled())
        run.store.verdicts.put_nowait(None)
        await asyncio.wait_for(reading, WAIT_S)
        await asyncio.wait_for(run.gate.flush(), WAIT_S)

    assert run.store.batches == [[accept("a")]]


@pytest.mark.parametrize(
    ("records", "gather_s"), [(BUSY_RECORDS, GATHER_S), (FULL_RECORDS, 2 * GATHER_S)]
)
async def test_under_load_records_gather_before_the_next_commit(
    records: int, gather_s: float
) -> None:
    """After a busy batch the next begins so much later, after a full one twice as much."""
    async with running() as recorder:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        recorder.gate.add([accept(f"j{n}") for n in range(records)], [])
        await recorder.committing()
        recorder.gate.add([accept("a")], [])

        recorder.store.verdicts.put_nowait(None)
        await asyncio.sleep(0)
        recorder.gate.add([accept("b")], [])
        await recorder.committing()

        # The loop's timers may be early by the resolution of its clock.
        assert loop.time() - began_s >= gather_s - 0.001
        assert [len(batch) for batch in recorder.store.batches] == [records, 2]


async def test_a_few_records_do_not_delay_the_next_commit() -> None:
    """Without load nobody waits for company."""
    async with running() as recorder:
        recorder.gate.add([accept("a")], [])
        await recorder.committing()
        recorder.gate.add([accept("b")], [])

        recorder.store.verdicts.put_nowait(None)
        for _ in range(5):
            await asyncio.sleep(0)

        assert recorder.store.arrived.is_set()


async def test_after_a_doubt_nothing_leaves_before_the_store_was_asked() -> None:
    """Not even what rests on no record, and nobody reads meanwhile. LO-305."""
    async with running() as run:
        run.store.asked.clear()
        run.gate.confirm()
        run.gate.add([], [reply("a")])
        reading = asyncio.create_task(run.gate.settled("a"))
        await asyncio.sleep(0)
        early = list(run.released), reading.done(), run.gate.unsure

        run.store.asked.set()
        await asyncio.wait_for(reading, WAIT_S)

        assert early == ([], False, True)
        assert run.released == [reply("a")]
        assert not run.gate.unsure


async def test_a_doubt_that_cannot_be_settled_stays() -> None:
    """While the store cannot be read, its accepts are taken back and readers wait. LO-305."""
    async with running() as run:
        run.store.unreadable = 1
        run.gate.confirm()
        run.gate.add([accept("a")], [reply("a")])
        reading = asyncio.create_task(run.gate.settled())
        await asyncio.wait_for(run.failed.wait(), WAIT_S)
        during = run.gate.unsure, reading.done(), list(run.reverted)

        await asyncio.wait_for(reading, WAIT_S)

        assert during == (True, False, [("a",)])
        assert run.store.batches == []


async def test_who_reads_is_told_when_the_journal_is_lost() -> None:
    """Nothing will be durable any more. LO-305."""
    async with running() as run:
        run.gate.add([accept("a")], [])
        await run.committing()
        reading = asyncio.create_task(run.gate.settled("a"))
        await asyncio.sleep(0)

        run.gate.abandon(StoreTakenError("taken"))

        with pytest.raises(StoreTakenError):
            await asyncio.wait_for(reading, WAIT_S)
        with pytest.raises(StoreTakenError):
            await run.gate.settled("b")
        assert run.gate.degraded
