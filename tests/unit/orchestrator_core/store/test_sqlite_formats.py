"""Journals that other versions wrote: they load, or are refused and left alone. LO-305."""

import contextlib
import sqlite3
import zlib
from pathlib import Path

import pytest

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.machine import Core
from orchestrator_core.core.spec import StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.store.port import StoreCorruptError
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import PAYLOAD, after, batch
from tests.unit.orchestrator_core.store.sqlite_files import change, filled


async def test_a_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    """A journal of a later version is left for that version."""
    path = tmp_path / "journal.db"
    await filled(path)
    change(path, "UPDATE journal SET schema_version = 2")

    with pytest.raises(StoreCorruptError, match=rf"{path} has schema version 2.*run the version"):
        await SqliteStore(path).open()

    change(path, "UPDATE journal SET schema_version = 1")
    store = SqliteStore(path)
    assert (await store.open()).epoch == 2
    await store.close()


def in_second_format(path: Path) -> None:
    """Makes the rows such that one checksum covers an accept and its payload, which stays."""
    connection = sqlite3.connect(path)
    with connection:
        for table in ("dispatch", "terminal"):
            connection.execute(f"UPDATE {table} SET format = 2")  # noqa: S608 - names above
        rows = connection.execute("SELECT job_id, seq, record FROM accept").fetchall()
        for job_id, seq, record in rows:
            covered = f"{job_id} {seq} {record[16:]}".encode() + PAYLOAD
            text = f"{zlib.crc32(covered):08x}{record[16:]}"
            change = "UPDATE accept SET format = 2, record = ?, payload = ? WHERE job_id = ?"
            connection.execute(change, (text, PAYLOAD, job_id))
    connection.close()


async def test_rows_of_the_second_format_still_load_and_end(tmp_path: Path) -> None:
    """The prompts of jobs that have ended are not read; others go as their jobs end. LO-305."""
    path = tmp_path / "journal.db"
    await filled(path)
    in_second_format(path)
    store = SqliteStore(path)

    first = (await store.open()).recovered
    await store.commit(batch(4))
    await store.close()
    second = (await store.open()).recovered
    await store.close()

    assert first == after(3)
    assert second == after(4)


async def test_a_damaged_prompt_of_the_second_format_is_found(tmp_path: Path) -> None:
    """Its checksum counts for as long as the job may be sent."""
    path = tmp_path / "journal.db"
    await filled(path)
    in_second_format(path)
    change(path, "UPDATE accept SET payload = zeroblob(1024) WHERE job_id = 'job-3'")

    with pytest.raises(StoreCorruptError, match=rf"{path} .*job job-3 .*checksum"):
        await SqliteStore(path).open()


async def test_a_journal_of_the_first_format_opens(tmp_path: Path) -> None:
    """What was not written then has a safe meaning now. LO-304, LO-305."""
    path = tmp_path / "journal.db"
    old = Path(__file__).parent / "journal_first_format.sql"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(old.read_text(encoding="utf-8"))
    store = SqliteStore(path)

    opened = await store.open()
    await store.close()

    content = opened.recovered
    assert [accept.spec.job_id for accept in content.accepts] == [
        "replayed",
        "cancelled",
        "finished",
    ]
    assert {(d.job_id, d.attempt, d.mode, d.failures) for d in content.dispatches} == {
        ("replayed", 1, None, 0),
        ("replayed", 2, None, 0),
        ("cancelled", 1, None, 0),
        ("finished", 1, None, 0),
    }
    core = Core(CoreConfig())
    core.step(content, 10)
    attempt = core.jobs["replayed"].attempt
    assert attempt is not None
    assert (attempt.number, attempt.mode) == (2, StartMode.VERIFIED_REPLAY)
    assert core.jobs["cancelled"].state is JobState.CANCELLED


async def test_rows_of_the_first_format_still_load(tmp_path: Path) -> None:
    """A journal that was written without checksums is read as it is. LO-305."""
    path = tmp_path / "journal.db"
    await filled(path)
    # An accept begins with two checksums, of itself and of its payload.
    change(path, "UPDATE accept SET format = 1, record = substr(record, 17)")
    change(path, "UPDATE dispatch SET format = 1, record = substr(record, 9)")
    change(path, "UPDATE terminal SET format = 1, record = substr(record, 9)")

    store = SqliteStore(path)
    opened = await store.open()
    await store.close()

    assert opened.recovered == after(3)
