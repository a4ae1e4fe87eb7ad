"""The journal's file stays as large as what it holds, however long it is used. LO-305."""

from dataclasses import replace
from pathlib import Path

from orchestrator_core.store.journal_file import COMPACT_PAGES
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import accept, terminal

PROMPT = bytes(64 * 1024)
PAGE_BYTES = 4096


async def ended_jobs(store: SqliteStore, first: int, count: int) -> None:
    """Accepts and ends jobs with long prompts."""
    for number in range(first, first + count):
        record = accept(number)
        long = replace(record, spec=replace(record.spec, payload=PROMPT))
        await store.commit([long, terminal(number)])


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
        await store.prune(ended_before_ms=10_000)
        sizes.append(size_of(fast_disk))
    await store.close()

    written = 8 * 50 * len(PROMPT)
    assert sizes[-1] <= sizes[2]
    assert sizes[-1] < written / 2


async def test_after_a_burst_the_file_gives_its_space_back(fast_disk: Path) -> None:
    """Down to what may be kept free, in chunks between which commits come."""
    path = fast_disk / "journal.db"
    kept_bytes = 256 * 1024
    store = SqliteStore(path, free_bytes_kept=kept_bytes)
    await store.open()
    await ended_jobs(store, 1, 2 * COMPACT_PAGES * PAGE_BYTES // len(PROMPT))
    await store.close()
    held = path.stat().st_size

    await store.open()
    await store.commit([accept(5_000)])
    await store.prune(ended_before_ms=5_000)
    await store.close()
    left = path.stat().st_size
    opened = await store.open()
    await store.close()

    assert held > 2 * COMPACT_PAGES * PAGE_BYTES
    assert left < kept_bytes + 64 * PAGE_BYTES
    assert [record.spec.job_id for record in opened.recovered.accepts] == ["job-5000"]
