"""The journal's file stays as large as what it holds, however long it is used. LO-305."""

import sqlite3
from dataclasses import replace
from pathlib import Path

from orchestrator_core.core.records import AcceptRecord
from orchestrator_core.store.port import Keep
from orchestrator_core.store.space import COMPACT_PAGES
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import accept, terminal

PROMPT = bytes(64 * 1024)
PAGE_BYTES = 4096
JOBS = 2_000
MEDIUM_PROMPT = b"prompt" * 2_000
MUCH = 1 << 40


def since(ended_since_ms: int) -> Keep:
    """What ended before goes, nothing else."""
    return Keep(ended_since_ms, ended_max=10**6, ended_min=0, bytes_max=MUCH)


def long(number: int) -> AcceptRecord:
    """An accept with a prompt of 64 KiB."""
    record = accept(number)
    return replace(record, spec=replace(record.spec, payload=PROMPT))


async def ended_jobs(store: SqliteStore, first: int, count: int) -> None:
    """Accepts and ends jobs with long prompts."""
    for number in range(first, first + count):
        await store.commit([long(number), terminal(number)])


def size_of(directory: Path) -> int:
    """Bytes of all files: the database and its log."""
    return sum(file.stat().st_size for file in directory.iterdir())


async def test_a_long_life_with_deletions_costs_no_more_than_a_short_one(fast_disk: Path) -> None:
    """What was deleted makes room for what comes: the file and its log stop growing."""
    path = fast_disk / "journal.db"
    store = SqliteStore(path)
    await store.open()

    sizes = []
    for turn in range(8):
        await ended_jobs(store, 1 + turn * 50, 50)
        await store.prune(since(10_000))
        sizes.append(size_of(fast_disk))
    await store.close()

    written = 8 * 50 * len(PROMPT)
    # The log ends with a transaction that may be a little longer.
    assert sizes[-1] <= sizes[2] + 64 * PAGE_BYTES
    assert sizes[-1] < written / 2


async def test_after_a_burst_the_file_gives_its_space_back(fast_disk: Path) -> None:
    """Down to what may be kept free, in chunks between which commits come."""
    path = fast_disk / "journal.db"
    kept_bytes = 256 * 1024
    store = SqliteStore(path, free_bytes_kept=kept_bytes)
    await store.open()
    count = 2 * COMPACT_PAGES * PAGE_BYTES // len(PROMPT)
    await store.commit([long(number) for number in range(1, count + 1)])
    await store.commit([terminal(number) for number in range(1, count + 1)])
    await store.close()
    held = path.stat().st_size

    await store.open()
    await store.commit([accept(5_000)])
    await store.prune(since(5_000))
    await store.close()
    left = path.stat().st_size
    opened = await store.open()
    await store.close()

    assert held > 2 * COMPACT_PAGES * PAGE_BYTES
    assert left < kept_bytes + 64 * PAGE_BYTES
    assert [record.spec.job_id for record in opened.recovered.accepts] == ["job-5000"]


def large(number: int) -> AcceptRecord:
    """An accept with a prompt of 12 kB."""
    record = accept(number)
    return replace(record, spec=replace(record.spec, payload=MEDIUM_PROMPT))


async def filled(path: Path) -> SqliteStore:
    """An open journal with many jobs, of which all but one have ended."""
    store = SqliteStore(path, free_bytes_kept=1 << 20)
    await store.open()
    for first in range(0, JOBS, 500):
        batch = [large(n) for n in range(first, first + 500)]
        await store.commit(batch)
    ends = [replace(terminal(n), ended_ms=n) for n in range(1, JOBS)]
    await store.commit(ends)
    return store


def pages(path: Path) -> tuple[int, int]:
    """Pages of the file, and those of them that are free."""
    connection = sqlite3.connect(path)
    try:
        count, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
    finally:
        connection.close()
    return count, free


async def test_ended_jobs_leave_a_small_file(tmp_path: Path) -> None:
    """Their prompts are gone at once, and the disk has the room back after pruning."""
    path = tmp_path / "journal.db"
    store = await filled(path)

    await store.prune(Keep(0, ended_max=100, ended_min=0, bytes_max=MUCH))
    await store.close()

    assert path.stat().st_size < JOBS * len(MEDIUM_PROMPT) // 5
    again = SqliteStore(path)
    recovered = (await again.open()).recovered
    await again.close()
    assert [r.spec.payload for r in recovered.accepts][:1] == [MEDIUM_PROMPT]
    assert len(recovered.terminals) == 100


async def test_content_beyond_the_bound_goes_the_oldest_first(tmp_path: Path) -> None:
    """The bytes decide, except about the jobs that must stay."""
    path = tmp_path / "journal.db"
    store = await filled(path)

    kept = []
    for bytes_max, ended_min in ((1 << 20, 0), (1, 50)):
        await store.prune(Keep(0, ended_max=JOBS, ended_min=ended_min, bytes_max=bytes_max))
        await store.close()
        count, free = pages(path)
        store = SqliteStore(path)
        terminals = (await store.open()).recovered.terminals
        assert [record.ended_ms for record in terminals] == list(range(JOBS))[-len(terminals) :]
        kept.append((len(terminals), (count - free) * 4096))
    await store.close()

    (many, used_bytes), (few, _) = kept
    assert 100 < many < JOBS - 1
    assert used_bytes <= 1 << 20
    assert few == 50


async def test_a_file_that_cannot_shrink_is_pruned_all_the_same(tmp_path: Path) -> None:
    """Earlier versions made such files; their free pages are used again."""
    path = tmp_path / "journal.db"
    store = SqliteStore(path, free_bytes_kept=0)
    await store.open()
    await store.commit([long(1), long(2), terminal(1)])
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.close()

    await store.open()
    await store.commit([terminal(2)])
    deleted = await store.prune(since(100))
    await store.close()

    count, free = pages(path)
    assert deleted == 2
    assert free > len(PROMPT) // PAGE_BYTES - 1
    assert count > free
