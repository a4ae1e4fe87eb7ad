"""What every journal deletes in time, and what it keeps. LO-305."""

from orchestrator_core.core.events import Recovered
from orchestrator_core.store.port import (
    Keep,
    Store,
)
from orchestrator_core.store.sqlite import PRUNE_CHUNK
from tests.conformance.media import MUCH, Medium, reopened, since
from tests.conformance.store_records import accept, dispatch, terminal

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
