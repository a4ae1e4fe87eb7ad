"""What every journal promises, run against each implementation. LO-305."""

import asyncio
import dataclasses
import random
import sqlite3
import tempfile
import typing
from collections.abc import Callable
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
    SessionForgotten,
    TerminalRecord,
)
from orchestrator_core.store.memory import CommitFault, MemoryJournal, MemoryStore
from orchestrator_core.store.port import (
    JOURNAL_ID_BYTES,
    Keep,
    Store,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
)
from orchestrator_core.store.sqlite import PRUNE_CHUNK, SqliteStore
from tests.conformance.store_records import accept, dispatch, drain, model, over, session, terminal
from tests.unit.orchestrator_core.store.commit_breaks import CommitBreaks
from tests.unit.orchestrator_core.store.strategies import strategy_of

KINDS = ("memory", "simulated", "sqlite")
MUCH = 1 << 40


def since(ended_since_ms: int) -> Keep:
    """What ended before goes, nothing else."""
    return Keep(ended_since_ms, ended_max=10**6, ended_min=0, bytes_max=MUCH)


@dataclasses.dataclass
class Medium:
    """Where a journal's content lives: `store` opens it anew, `plan` breaks the next commits."""

    store: Callable[[], Store]
    plan: list[CommitFault]


def memory_medium() -> Medium:
    """A journal in memory."""
    plan: list[CommitFault] = []
    store = MemoryStore(lambda _number, _batch: plan.pop(0) if plan else CommitFault.NONE)
    return Medium(lambda: store, plan)


def simulated_medium() -> Medium:
    """A journal on the disk of the fault simulation."""
    plan: list[CommitFault] = []
    disk = Disk(random.Random(0), fault=lambda: plan.pop(0) if plan else CommitFault.NONE)  # noqa: S311 - seeded
    return Medium(lambda: SimulatedStore(disk), plan)


def sqlite_medium(directory: Path) -> Medium:
    """A journal in a file."""
    plan: list[CommitFault] = []
    factory = type("PlannedConnection", (CommitBreaks,), {"plan": plan})

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, factory=factory)

    return Medium(lambda: SqliteStore(directory / "journal.db", connect), plan)


def medium_of(kind: str, directory: Path) -> Medium:
    """A fresh medium."""
    if kind == "simulated":
        return simulated_medium()
    return memory_medium() if kind == "memory" else sqlite_medium(directory)


@pytest.fixture(params=KINDS)
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    """A fresh medium of each kind."""
    return medium_of(request.param, tmp_path)


@pytest.fixture
async def store(medium: Medium) -> typing.AsyncIterator[Store]:
    """An open, empty journal."""
    store = medium.store()
    await store.open()
    yield store
    await store.close()


async def reopened(medium: Medium, store: Store) -> Recovered:
    """What the journal holds after a restart; it is closed again."""
    await store.close()
    again = medium.store()
    opened = await again.open()
    await again.close()
    return opened.recovered


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


# --- prune


async def test_prune_deletes_what_ended_before_with_its_dispatches(
    medium: Medium, store: Store
) -> None:
    """Live jobs and jobs that ended at the instant or later stay."""
    for number, ended_ms in ((1, 10), (2, 20), (3, 30)):
        job_id = f"job-{number}"
        await store.commit([accept(number), dispatch(job_id), terminal(job_id, ended_ms=ended_ms)])
    await store.commit([accept(4), dispatch("job-4")])

    assert await store.prune(since(20)) == 1
    assert await store.prune(since(20)) == 0

    recovered = await reopened(medium, store)
    assert [r.seq for r in recovered.accepts] == [2, 3, 4]
    assert [r.job_id for r in recovered.dispatches] == ["job-2", "job-3", "job-4"]
    assert [r.job_id for r in recovered.terminals] == ["job-2", "job-3"]


async def test_prune_keeps_the_last_that_ended_within_bounds(medium: Medium, store: Store) -> None:
    """Too many go, the oldest first, but not those that must stay; what is too old goes anyway."""
    for number in range(1, 7):
        ended_ms = 70 - 10 * number
        await store.commit([accept(number), terminal(f"job-{number}", ended_ms=ended_ms)])
    await store.commit([accept(7)])

    assert await store.prune(Keep(0, ended_max=4, ended_min=3, bytes_max=MUCH)) == 2
    assert await store.prune(Keep(0, ended_max=1, ended_min=3, bytes_max=MUCH)) == 1
    assert await store.prune(Keep(50, ended_max=1, ended_min=3, bytes_max=MUCH)) == 1

    recovered = await reopened(medium, store)
    assert [r.job_id for r in recovered.terminals] == ["job-1", "job-2"]
    assert [r.seq for r in recovered.accepts] == [1, 2, 7]


async def test_an_end_deletes_the_prompt(medium: Medium, store: Store) -> None:
    """Nobody needs it any more; that of a live job stays. LO-305."""
    await store.commit([accept(1), accept(2), accept(3)])
    await store.commit([terminal("job-2"), accept(4), terminal("job-4")])

    recovered = await reopened(medium, store)

    payloads = {r.seq: r.spec.payload for r in recovered.accepts}
    prompt = accept(1).spec.payload
    assert payloads == {1: prompt, 2: b"", 3: prompt, 4: b""}


async def test_prune_takes_more_than_one_chunk(medium: Medium, store: Store) -> None:
    """Chunks bound each transaction, not the whole."""
    count = 2 * PRUNE_CHUNK + 1
    await store.commit([accept(n) for n in range(count)])
    await store.commit([terminal(f"job-{n}", ended_ms=n) for n in range(count)])

    assert await store.prune(since(count - 1)) == count - 1

    assert [r.seq for r in (await reopened(medium, store)).accepts] == [count - 1]


async def test_prune_does_not_turn_the_clock_back(medium: Medium, store: Store) -> None:
    """The latest instant outlives the record that held it."""
    await store.commit([accept(1), terminal("job-1", ended_ms=500)])
    await store.prune(since(1_000))
    await store.close()

    again = medium.store()
    opened = await again.open()
    await again.close()

    assert (opened.last_ms, opened.recovered) == (500, Recovered())


async def test_of_a_session_the_latest_record_counts(medium: Medium, store: Store) -> None:
    """ORCH-3021, ORCH-3099: within a batch and over batches, and nothing of one that is over."""
    await store.commit([session("s", turns=1), session("t"), session("s", turns=2)])
    await store.commit([session("s", turns=3), session("u"), SessionForgotten("client", "t")])
    await store.commit([SessionForgotten("client", "u"), session("u", turns=9)])

    recovered = await reopened(medium, store)

    assert recovered.sessions == (session("s", turns=3), session("u", turns=9))


async def test_an_unknown_batch_of_sessions_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each session alone."""
    store = medium.store()
    await store.open()
    await store.commit([session("t")])
    batch = [accept(1), session(turns=1), session(turns=2), SessionForgotten("client", "t")]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.sessions == (session(turns=2),)


async def test_of_a_pool_the_latest_drain_counts(medium: Medium, store: Store) -> None:
    """OC-CTRL-2002: within a batch and over batches, and nothing of one that is over."""
    await store.commit([drain("p"), drain("q"), drain("p", since_ms=4)])
    await store.commit([drain("p", since_ms=5), drain("r"), drain("q", over=True)])
    await store.commit([drain("r", over=True), session("p"), drain("r", since_ms=9)])

    recovered = await reopened(medium, store)

    assert sorted(recovered.drains, key=lambda record: record.pool_id) == [
        drain("p", since_ms=5),
        drain("r", since_ms=9),
    ]
    assert recovered.sessions == (session("p"),)


async def test_an_unknown_batch_of_drains_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each pool alone."""
    store = medium.store()
    await store.open()
    await store.commit([drain("q")])
    batch = [drain("p"), drain("p", since_ms=7), drain("q", over=True)]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.drains == (drain("p", since_ms=7),)


async def test_of_a_model_the_latest_record_counts(medium: Medium, store: Store) -> None:
    """ORCH-3031: within a batch and over batches, and nothing of one that was deleted."""
    await store.commit([model("m"), model("n"), model("m", revision=2)])
    await store.commit([model("m", revision=3), model("o"), model("n", over=True)])
    await store.commit([model("o", over=True), drain("m"), model("o", revision=9)])

    recovered = await reopened(medium, store)

    assert recovered.models == (model("m", revision=3), model("o", revision=9))
    assert recovered.drains == (drain("m"),)


async def test_an_unknown_batch_of_models_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each model alone."""
    store = medium.store()
    await store.open()
    await store.commit([model("n")])
    batch = [model("m"), model("m", revision=7), model("n", over=True)]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.models == (model("m", revision=7),)


async def test_the_clock_never_goes_below_a_model(medium: Medium, store: Store) -> None:
    """What is left of its grace must not grow."""
    await store.commit([model(revision=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77


async def test_the_clock_never_goes_below_a_drain(medium: Medium, store: Store) -> None:
    """What is left of its time must not grow."""
    await store.commit([drain(since_ms=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77


async def test_the_clock_never_goes_below_a_session(medium: Medium, store: Store) -> None:
    """Its jobs may have been deleted since."""
    await store.commit([session(used_ms=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77
