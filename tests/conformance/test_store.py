"""What every journal promises of jobs, run against each implementation. LO-305."""

import asyncio
import dataclasses
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from faults.simulation.disk import Disk, SimulatedStore
from orchestrator_core.core.events import Recovered
from orchestrator_core.core.outcome import Finish
from orchestrator_core.core.records import (
    AcceptRecord,
    DispatchRecord,
    Record,
    TerminalRecord,
)
from orchestrator_core.store.memory import CommitFault, MemoryJournal, MemoryStore
from orchestrator_core.store.port import (
    JOURNAL_ID_BYTES,
    Store,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
)
from tests.conformance.media import KINDS, Medium, medium_of, reopened, since
from tests.conformance.store_records import accept, dispatch, over, terminal
from tests.unit.orchestrator_core.store.strategies import strategy_of

# --- every value of every record type


ACCEPTS = strategy_of(AcceptRecord)
DISPATCHES = strategy_of(DispatchRecord)
TERMINALS = strategy_of(TerminalRecord)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(accepted=ACCEPTS, dispatched=DISPATCHES, ended=TERMINALS)
def test_every_record_comes_back_equal(
    kind: str, accepted: AcceptRecord, dispatched: DispatchRecord, ended: TerminalRecord
) -> None:
    """Whatever the core can say is read back as it was written. LO-305."""
    job_id = accepted.spec.job_id
    dispatched = dataclasses.replace(dispatched, job_id=job_id)
    ended = dataclasses.replace(ended, job_id=job_id)

    async def run(directory: Path) -> Recovered:
        medium = medium_of(kind, directory)
        store = medium.store()
        await store.open()
        await store.commit([accepted, dispatched, ended])
        return await reopened(medium, store)

    with tempfile.TemporaryDirectory() as directory:
        recovered = asyncio.run(run(Path(directory)))

    assert recovered == Recovered((over(accepted),), (dispatched,), (ended,))


# --- order, repetition, all or nothing


async def test_accepts_come_back_by_arrival_and_the_rest_by_writing(
    medium: Medium, store: Store
) -> None:
    """Recovery sees accepts by arrival number, dispatches and terminals as they were written."""
    await store.commit([accept(2), accept(1), accept(3)])
    await store.commit([dispatch("job-3"), dispatch("job-1"), terminal("job-3")])
    await store.commit([dispatch("job-3", attempt=2), terminal("job-1")])

    recovered = await reopened(medium, store)

    assert [r.seq for r in recovered.accepts] == [1, 2, 3]
    assert [(r.job_id, r.attempt) for r in recovered.dispatches] == [
        ("job-3", 1),
        ("job-1", 1),
        ("job-3", 2),
    ]
    assert [r.job_id for r in recovered.terminals] == ["job-3", "job-1"]


async def test_a_batch_may_name_a_job_before_its_accept(medium: Medium, store: Store) -> None:
    """The order inside one batch does not matter."""
    await store.commit([terminal("job-1"), dispatch("job-1"), accept(1)])

    recovered = await reopened(medium, store)

    assert len(recovered.accepts) == len(recovered.dispatches) == len(recovered.terminals) == 1


async def test_writing_again_changes_nothing(medium: Medium, store: Store) -> None:
    """A batch that is sent twice counts once, and the first terminal stands. LO-305."""
    batch: list[Record] = [accept(1), dispatch("job-1"), terminal("job-1")]
    await store.commit(batch)
    await store.commit(batch)
    await store.commit([terminal("job-1", ended_ms=99, finish=Finish.LENGTH)])

    recovered = await reopened(medium, store)

    assert recovered == Recovered((over(accept(1)),), (dispatch("job-1"),), (terminal("job-1"),))


async def test_a_record_of_an_unknown_job_refuses_the_whole_batch(
    medium: Medium, store: Store
) -> None:
    """Misuse raises, and nothing of the batch is kept."""
    with pytest.raises(ValueError, match="never accepted"):
        await store.commit([accept(1), terminal("job-1"), dispatch("stranger")])

    assert await reopened(medium, store) == Recovered()


async def test_a_live_job_is_never_replaced(medium: Medium, store: Store) -> None:
    """Another accept under the id of a job that has not ended is misuse."""
    await store.commit([accept(1)])

    with pytest.raises(ValueError, match="has not ended"):
        await store.commit([accept(2), accept(3, job_id="job-1")])

    assert await reopened(medium, store) == Recovered((accept(1),))


async def test_the_id_of_an_ended_job_can_be_used_again(medium: Medium, store: Store) -> None:
    """A new job takes the place of an ended one of the same id, with nothing left of it."""
    await store.commit([accept(1), dispatch("job-1"), terminal("job-1")])
    await store.commit([accept(7, job_id="job-1")])

    assert await reopened(medium, store) == Recovered((accept(7, job_id="job-1"),))


async def test_accepts_beside_a_held_one_and_a_used_id_are_all_written(
    medium: Medium, store: Store
) -> None:
    """However many come in one batch, each counts for itself."""
    held, ended = accept(1), accept(2)
    await store.commit([held, ended, terminal("job-2")])
    later = [accept(number) for number in range(3, 14)]
    anew = accept(14, job_id="job-2")

    await store.commit([*later[:6], held, anew, *later[6:]])

    assert (await reopened(medium, store)).accepts == (held, *later, anew)


async def test_an_empty_batch_is_nothing(medium: Medium, store: Store) -> None:
    """Committing nothing succeeds and is held."""
    await store.commit([])

    assert await store.holds([])
    assert await reopened(medium, store) == Recovered()


# --- failures


async def test_a_refused_batch_leaves_nothing_and_the_next_one_works(
    medium: Medium, store: Store
) -> None:
    """StoreUnavailableError means: certainly not written."""
    await store.commit([accept(1)])
    medium.plan.append(CommitFault.UNAVAILABLE)

    with pytest.raises(StoreUnavailableError):
        await store.commit([accept(2), terminal("job-1")])

    assert not await store.holds([accept(2)])
    await store.commit([accept(3)])
    assert [r.seq for r in (await reopened(medium, store)).accepts] == [1, 3]


@pytest.mark.parametrize("fault", [CommitFault.UNKNOWN_WRITTEN, CommitFault.UNKNOWN_LOST])
async def test_holds_tells_what_became_of_an_unknown_batch(
    medium: Medium, store: Store, fault: CommitFault
) -> None:
    """After an unknown outcome the journal is asked, and recovery agrees with its answer."""
    batch: list[Record] = [accept(2), dispatch("job-1"), terminal("job-1")]
    await store.commit([accept(1)])
    medium.plan.append(fault)

    with pytest.raises(StoreOutcomeUnknownError):
        await store.commit(batch)
    held = await store.holds(batch)

    assert held is (fault is CommitFault.UNKNOWN_WRITTEN)
    await store.commit([accept(3)])
    recovered = await reopened(medium, store)
    assert [r.seq for r in recovered.accepts] == ([1, 2, 3] if held else [1, 3])
    assert len(recovered.terminals) == len(recovered.dispatches) == int(held)


async def test_an_unknown_batch_can_be_written_again(medium: Medium, store: Store) -> None:
    """Sending it again is safe whether or not it had been written."""
    for fault in (CommitFault.UNKNOWN_WRITTEN, CommitFault.UNKNOWN_LOST):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit([accept(1), terminal("job-1")])
        await store.commit([accept(1), terminal("job-1")])

    assert await reopened(medium, store) == Recovered((over(accept(1)),), (), (terminal("job-1"),))


@pytest.mark.parametrize(
    ("record", "held"),
    [
        (accept(1), True),
        (dispatch("job-1"), True),
        (terminal("job-1"), True),
        (accept(2), False),
        (accept(9, job_id="job-1"), False),
        (dispatch("job-1", attempt=2), False),
        (terminal("job-2"), False),
    ],
)
async def test_holds_looks_at_every_record(store: Store, record: Record, held: bool) -> None:
    """One record that is missing makes the whole batch missing."""
    await store.commit([accept(1), dispatch("job-1"), terminal("job-1")])

    assert await store.holds([accept(1), record]) is held


# --- opening and closing


async def test_the_epoch_grows_with_every_opening(medium: Medium) -> None:
    """Each opening gets a higher epoch, from 1."""
    epochs = []
    for _ in range(3):
        store = medium.store()
        epochs.append((await store.open()).epoch)
        await store.close()

    assert epochs == [1, 2, 3]


async def test_the_journal_id_lives_as_long_as_the_journal(
    medium: Medium, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every opening tells the same id, and another journal has another one. LO-305."""
    other = tmp_path / "other"
    other.mkdir()
    ids = []
    for opened_medium in (medium, medium, medium_of(request.node.callspec.params["medium"], other)):
        store = opened_medium.store()
        ids.append((await store.open()).journal_id)
        await store.close()

    assert ids[0] == ids[1] != ids[2]
    assert all(len(journal_id) == 2 * JOURNAL_ID_BYTES for journal_id in ids)


@pytest.mark.parametrize("kind", ["memory", "simulated"])
async def test_whoever_opens_a_journal_last_has_it(kind: str) -> None:
    """Nothing that an earlier orchestrator asks for takes effect from then on. LO-305.

    A file of SQLite is locked: there another one is refused, see the tests of that store.
    """
    journal, disk = MemoryJournal(), Disk(random.Random(0))  # noqa: S311 - seeded
    old, new, later = (
        MemoryStore(journal=journal) if kind == "memory" else SimulatedStore(disk) for _ in range(3)
    )
    await old.open()
    await old.commit([accept(1)])
    assert await old.holds(())

    opened = await new.open()
    await new.commit([accept(2)])
    for late in (old.commit([terminal("job-1")]), old.holds(()), old.prune(since(10))):
        with pytest.raises(StoreTakenError, match="epoch 2, not 1"):
            await late

    assert [record.seq for record in opened.recovered.accepts] == [1]
    assert await new.holds([accept(1), accept(2)])
    assert not await new.holds([terminal("job-1")])
    assert [record.seq for record in (await later.open()).recovered.accepts] == [1, 2]


async def test_an_empty_batch_asks_whether_the_journal_is_held(store: Store) -> None:
    """After a pause somebody else may have it. LO-305."""
    assert await store.holds(())


@pytest.mark.parametrize(
    "latest",
    [
        [accept(5, accepted_ms=900)],
        [accept(5), dispatch("job-5", sent_ms=900)],
        [accept(5), terminal("job-5", ended_ms=900)],
    ],
)
async def test_last_ms_is_the_latest_instant_of_any_record(
    medium: Medium, store: Store, latest: list[Record]
) -> None:
    """The clock of the next run starts no earlier than anything written."""
    await store.commit([accept(1, accepted_ms=10), dispatch("job-1", sent_ms=20)])
    await store.commit([terminal("job-1", ended_ms=30)])
    await store.commit(latest)
    await store.close()

    again = medium.store()
    opened = await again.open()
    await again.close()

    assert opened.last_ms == 900


async def test_a_new_journal_is_empty(medium: Medium) -> None:
    """There is nothing to recover and no instant in it."""
    store = medium.store()

    opened = await store.open()

    assert (opened.last_ms, opened.recovered) == (0, Recovered())
    await store.close()


async def test_a_closed_journal_refuses_and_close_is_idempotent(store: Store) -> None:
    """After close every use is StoreUnavailableError; closing twice is fine."""
    await store.close()
    await store.close()

    for use in (store.commit([accept(1)]), store.holds([accept(1)]), store.prune(since(5))):
        with pytest.raises(StoreUnavailableError):
            await use
