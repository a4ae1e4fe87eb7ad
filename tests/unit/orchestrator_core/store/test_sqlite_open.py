"""Opening the SQLite journal: every obstacle names the file and what to do. LO-305."""

import asyncio
import os
import re
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.store import journal_file
from orchestrator_core.store.port import (
    StoreCorruptError,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
)
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.commit_breaks import ends_transaction
from tests.unit.orchestrator_core.store.records import accept, after, batch
from tests.unit.orchestrator_core.store.small_disk import remount, tmpfs
from tests.unit.orchestrator_core.store.sqlite_files import change, filled


def modes_in(directory: Path) -> dict[str, int]:
    """The permissions of every file."""
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """A journal holds prompts, so nobody else may read it."""
    path = tmp_path / "journal.db"
    store = SqliteStore(path)
    await store.open()

    modes = modes_in(tmp_path)
    await store.close()

    assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600}


async def test_a_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """Two orchestrators cannot decide about the same jobs."""
    path = tmp_path / "journal.db"
    first, second = SqliteStore(path), SqliteStore(path)
    await first.open()

    with pytest.raises(StoreCorruptError, match=rf"{path}.* another orchestrator"):
        await second.open()

    await first.commit(batch(1))
    await first.close()
    assert (await second.open()).recovered == after(1)
    await second.close()


async def test_another_process_is_refused_even_after_a_refusal_in_this_one(tmp_path: Path) -> None:
    """The lock holds between processes; a refused opener in this process does not release it."""
    path = tmp_path / "journal.db"
    first, second = SqliteStore(path), SqliteStore(path)
    await first.open()
    with pytest.raises(StoreCorruptError):
        await second.open()
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0);"
        "c.execute('SELECT * FROM accept')"
    )

    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, path, stderr=asyncio.subprocess.PIPE
    )
    _, said = await other.communicate()
    await first.close()

    assert other.returncode != 0
    assert b"database is locked" in said


@pytest.mark.parametrize("content", [b"not a database at all, but long enough", b"\xff" * 5_000])
async def test_a_file_of_something_else_is_refused_unharmed(tmp_path: Path, content: bytes) -> None:
    """Garbage is named, and left as it is."""
    path = tmp_path / "journal.db"
    path.write_bytes(content)

    with pytest.raises(StoreCorruptError, match=rf"{path} is not a journal: move it away"):
        await SqliteStore(path).open()

    assert path.read_bytes() == content


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """A valid SQLite file without our tables is not taken over."""
    path = tmp_path / "other.db"
    change(path, "CREATE TABLE accounts (id INTEGER)")

    with pytest.raises(StoreCorruptError, match=rf"{path} is not a journal"):
        await SqliteStore(path).open()


def damage(path: Path, name: str) -> None:
    """Overwrites the root page of a table or index."""
    connection = sqlite3.connect(path)
    query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
    (page,) = connection.execute(query, (name,)).fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    start = (page - 1) * 4096
    content[start : start + 64] = b"\x5a" * 64
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["accept", "terminal_ended_ms"])
async def test_a_damaged_page_is_refused(tmp_path: Path, name: str) -> None:
    """Damage in the middle of the file is found at the start, not at the first look-up."""
    path = tmp_path / "journal.db"
    await filled(path)
    damage(path, name)

    with pytest.raises(StoreCorruptError, match=rf"{path} is damaged: restore a copy"):
        await SqliteStore(path).open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accept SET format = 4 WHERE job_id = 'job-2'",
        "UPDATE accept SET record = replace(record, 'model', 'other') WHERE job_id = 'job-2'",
        "UPDATE dispatch SET record = '{}' WHERE job_id = 'job-2'",
        "UPDATE terminal SET record = 'no JSON' WHERE job_id = 'job-2'",
        "UPDATE terminal SET record = replace(record, 'eos', 'end') WHERE job_id = 'job-2'",
        "UPDATE terminal SET record = replace(record, 'eos', 'length') WHERE job_id = 'job-2'",
        "UPDATE terminal SET record = CAST(record AS BLOB) WHERE job_id = 'job-2'",
        "UPDATE accept SET payload = zeroblob(1024) WHERE job_id = 'job-3'",
        "UPDATE accept SET payload = x'' WHERE job_id = 'job-3'",
        "UPDATE accept SET payload = 'text' WHERE job_id = 'job-3'",
        "DELETE FROM terminal WHERE job_id = 'job-2'",
        "UPDATE dispatch SET written = written + 100 WHERE job_id = 'job-2'",
    ],
)
async def test_an_unreadable_record_is_refused_with_its_job(tmp_path: Path, statement: str) -> None:
    """A record that this version cannot read stops the start instead of being skipped."""
    path = tmp_path / "journal.db"
    await filled(path)
    change(path, statement)

    with pytest.raises(StoreCorruptError, match=rf"{path} .*job job-[23] .*cannot be read"):
        await SqliteStore(path).open()


async def test_what_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    """Error messages go to logs, so they hold nothing of a record's content."""
    path = tmp_path / "journal.db"
    await filled(path)
    change(path, """UPDATE accept SET record = '{"spec": "the secret prompt"}'""")

    with pytest.raises(StoreCorruptError) as caught:
        await SqliteStore(path).open()

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("below", ["missing", "a-file"])
async def test_an_impossible_directory_is_named(tmp_path: Path, below: str) -> None:
    """Without a usable directory the message says to look at it."""
    (tmp_path / "a-file").write_text("")
    path = tmp_path / below / "journal.db"

    with pytest.raises(StoreCorruptError, match=rf"{path} .*check that its directory exists"):
        await SqliteStore(path).open()


async def test_a_read_only_file_is_refused_by_name(tmp_path: Path) -> None:
    """An orchestrator that cannot write its journal does not start."""
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=4m"):
        path = disk / "journal.db"
        await filled(path)
        remount(disk, "ro")
        with pytest.raises(StoreCorruptError, match=re.escape(str(path))):
            await SqliteStore(path).open()
        remount(disk, "rw")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
async def test_a_file_without_write_permission_is_refused_by_name(tmp_path: Path) -> None:
    """The message tells to check permissions."""
    path = tmp_path / "journal.db"
    await filled(path)
    path.chmod(0o400)

    with pytest.raises(StoreCorruptError, match="check the permissions"):
        await SqliteStore(path).open()


async def test_an_obstacle_can_be_removed_and_the_same_store_opened(tmp_path: Path) -> None:
    """A failed opening leaves no thread or lock behind."""
    path = tmp_path / "later" / "journal.db"
    store = SqliteStore(path)
    with pytest.raises(StoreCorruptError):
        await store.open()
    path.parent.mkdir()

    opened = await store.open()
    await store.close()

    assert opened.epoch == 1


async def test_opening_twice_is_misuse(tmp_path: Path) -> None:
    """One object has one connection."""
    store = SqliteStore(tmp_path / "journal.db")
    await store.open()

    with pytest.raises(RuntimeError, match="open already"):
        await store.open()
    await store.close()


async def test_after_an_unknown_outcome_the_file_is_opened_anew(tmp_path: Path) -> None:
    """Only a new recovery sees what the log holds after a failed sync; the old view may lack it."""
    opened: list[sqlite3.Connection] = []
    plan: list[bool] = []

    class FailingOnce(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if ends_transaction(self, sql) and plan and plan.pop():
                if self.in_transaction:
                    super().execute("ROLLBACK")
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
                raise error
            return super().execute(sql, *args)

    def connect(path: Path) -> sqlite3.Connection:
        opened.append(sqlite3.connect(path, isolation_level=None, factory=FailingOnce))
        return opened[-1]

    store = SqliteStore(tmp_path / "journal.db", connect)
    await store.open()
    plan.append(True)

    with pytest.raises(StoreOutcomeUnknownError):
        await store.commit(batch(1))
    assert not await store.holds(batch(1))
    await store.close()

    assert len(opened) == 2


async def test_a_takeover_between_an_unknown_outcome_and_the_question_is_noticed(
    tmp_path: Path,
) -> None:
    """When another orchestrator opened the file meanwhile, this one must end. LO-305."""
    path = tmp_path / "journal.db"
    store = SqliteStore(path)
    await store.open()
    await store.commit(batch(1))
    # What an unknown outcome does: the file is let go and opened anew with the next call.
    await store._run(store._file.close)
    await filled(path, batches=0)

    with pytest.raises(StoreTakenError, match=rf"{path} was taken over"):
        await store.commit([accept(9)])
    await store.close()


async def test_a_file_that_another_process_keeps_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short look is waited for; who holds the file for long has taken it over. LO-305."""
    path = tmp_path / "journal.db"
    store = SqliteStore(path)
    await store.open()
    await store._run(store._file.close)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailableError, match="another orchestrator"):
        await store.commit([accept(9)])
    monkeypatch.setattr(journal_file, "TAKEN_AFTER_S", 0.0)
    with pytest.raises(StoreTakenError, match=rf"{path} was taken over"):
        await store.commit([accept(9)])
    other.close()
    await store.commit([accept(9)])
    await store.close()
