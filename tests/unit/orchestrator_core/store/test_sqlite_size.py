"""How large the journal's file gets, and that it gives back what it does not need."""

import dataclasses
import sqlite3
from pathlib import Path

from orchestrator_core.store.port import Keep
from orchestrator_core.store.sqlite import SqliteStore
from tests.conformance.store_records import accept, terminal

JOBS = 2_000
PROMPT = b"prompt" * 2_000
MUCH = 1 << 40


def large(number: int) -> object:
    """An accept with a prompt of 12 kB."""
    record = accept(number)
    return dataclasses.replace(record, spec=dataclasses.replace(record.spec, payload=PROMPT))


async def filled(path: Path) -> SqliteStore:
    """An open journal with many jobs, of which all but one have ended."""
    store = SqliteStore(path)
    await store.open()
    for first in range(0, JOBS, 500):
        batch = [large(n) for n in range(first, first + 500)]
        await store.commit(batch)  # type: ignore[arg-type]  # they are accepts
    ends = [terminal(f"job-{n}", ended_ms=n) for n in range(1, JOBS)]
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

    assert path.stat().st_size < JOBS * len(PROMPT) // 5
    again = SqliteStore(path)
    recovered = (await again.open()).recovered
    await again.close()
    assert [r.spec.payload for r in recovered.accepts][:1] == [PROMPT]
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


async def test_a_file_of_an_earlier_version_opens_without_the_prompts_of_ended_jobs(
    tmp_path: Path,
) -> None:
    """It kept them, and cannot shrink; both do no harm."""
    path = tmp_path / "journal.db"
    store = SqliteStore(path)
    await store.open()
    await store.commit([accept(1), accept(2), terminal("job-1")])
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE accept SET payload = ?", (b"an old prompt",))
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.close()

    opened = await store.open()
    await store.commit([terminal("job-2", ended_ms=9)])
    deleted = await store.prune(Keep(100, ended_max=5, ended_min=0, bytes_max=MUCH))
    await store.close()

    assert [r.spec.payload for r in opened.recovered.accepts] == [b"", b"an old prompt"]
    assert deleted == 2
