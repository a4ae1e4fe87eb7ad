"""The journal's SQLite file, blocking: owned by one thread. `store.sqlite` wraps it.

What a failed COMMIT means: SQLite appends the transaction to the write-ahead log, the frame with
the commit mark last, and syncs. Without room (SQLITE_FULL) or without the lock the mark was not
written, so the batch is certainly lost. After an I/O error the mark may be in the file although
SQLite rolled back in memory, and a later recovery would find it: unknown, until the file is opened
anew and its log copied into the database. Source: sqlite.org/walformat.html,
sqlite.org/rescode.html.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import NoReturn

from orchestrator_core.core.records import AcceptRecord, Record
from orchestrator_core.store import artifact_rows, schema, space
from orchestrator_core.store.artifact import ArtifactChange
from orchestrator_core.store.opening import last_written, read_journal
from orchestrator_core.store.port import (
    Keep,
    Opened,
    StoreCorruptError,
    StoreError,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
    latest_only,
)
from orchestrator_core.store.record_rows import ROWS_AT_ONCE, RecordRows, delete, holds
from orchestrator_core.store.sqlite_errors import ADVICE, CERTAINLY_LOST, LOCKED, advice, code

LOCK_WAIT_S = 0.25
# A copy or a look into the file takes seconds; who has held it for longer will not give it back.
TAKEN_AFTER_S = 30.0
WAL_BYTES_KEPT = 64 * 1024 * 1024

Connect = Callable[[Path], sqlite3.Connection]

_TAKEN = "was taken over by another process: stop one of the two, or give them a file each"


def connect(path: Path) -> sqlite3.Connection:
    """Opens the file, which must exist, in autocommit mode."""
    return sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)


class JournalFile:
    """One journal file. Not thread-safe: one thread uses it from `open` to `close`."""

    def __init__(self, path: Path, connect: Connect, free_bytes_kept: int) -> None:
        self.path = path
        self._free_bytes_kept = free_bytes_kept
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._epoch = 0
        self._rows = RecordRows(0, 0)
        self._locked_since_s: float | None = None

    def open(self) -> Opened:
        """Opens or creates the journal and raises its epoch. Raises `StoreCorruptError`."""
        try:
            self._create_file()
            self._connection = self._connected()
            return self._opened(self._connection)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreCorruptError(f"{self.path} {advice(error)} ({error})") from error
        except UnicodeDecodeError as error:
            # SQLite quotes a name that is none any more.
            self.close()
            raise StoreCorruptError(f"{self.path} {ADVICE['SQLITE_CORRUPT']}") from error
        except StoreError:
            self.close()
            raise

    def commit(self, batch: Sequence[Record]) -> None:
        """Writes a batch in one transaction. Raises as `Store.commit` says."""
        connection = self._ready()
        if self._committed_at_once(connection, batch):
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._rows.insert(connection, batch)
        except sqlite3.IntegrityError as error:
            self._roll_back(connection)
            raise ValueError(f"{self.path}: a record of a job that was never accepted") from error
        except sqlite3.Error as error:
            # Nothing with a commit mark has been written yet.
            self._roll_back(connection)
            raise self._unavailable(error) from error
        except BaseException:
            self._roll_back(connection)
            raise
        self._end(connection)

    def holds(self, batch: Sequence[Record]) -> bool:
        """Tells whether every record of a batch is durable. Raises `StoreUnavailableError`."""
        connection = self._ready()
        try:
            return all(holds(connection, record) for record in latest_only(batch))
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """Writes changes of the index of artifacts. Raises as `Store.write_artifacts` says."""
        connection = self._ready()
        try:
            connection.execute("BEGIN IMMEDIATE")
            artifact_rows.write(connection, changes, self._epoch)
        except sqlite3.Error as error:
            # Nothing with a commit mark has been written yet.
            self._roll_back(connection)
            raise self._unavailable(error) from error
        self._end(connection)

    def prune_chunk(self, keep: Keep, jobs_max: int) -> int:
        """Deletes at most `jobs_max` ended jobs that are not to be kept; returns how many."""
        connection = self._ready()
        try:
            connection.execute("BEGIN IMMEDIATE")
            ended = space.superfluous(connection, keep, jobs_max)
            delete(connection, [job_id for job_id, _ in ended])
            if ended:
                last_ms = ended[-1][1]
                connection.execute(schema.RAISE_PRUNED_LAST_MS, (last_ms, last_ms))
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._unavailable(error) from error
        try:
            self._end(connection)
        except StoreOutcomeUnknownError as error:
            # Deleting is repeatable, so it does not matter whether it happened.
            raise StoreUnavailableError(str(error)) from error
        return len(ended)

    def compact_chunk(self) -> bool:
        """Gives pages back to the file system; True when more than is to be kept is free still."""
        connection = self._ready()
        try:
            return space.give_back(connection, self._free_bytes_kept)
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Closes the file and releases its lock. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # --- opening

    def _create_file(self) -> None:
        """Creates the file for its owner alone, as it will hold prompts."""
        # An existing file is not even opened here: closing a descriptor would release the lock that
        # this process may hold on it. Source: fcntl(2).
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _connected(self) -> sqlite3.Connection:
        connection = self._connect(self.path)
        try:
            for pragma in (
                "locking_mode = EXCLUSIVE",
                # Counts for a file that has no table yet; older ones never shrink.
                "auto_vacuum = INCREMENTAL",
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                f"journal_size_limit = {WAL_BYTES_KEPT}",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                raise sqlite3.OperationalError("no write-ahead log is possible here")
            # Takes the lock, and keeps it.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _opened(self, connection: sqlite3.Connection) -> Opened:
        opened = read_journal(self.path, connection)
        self._epoch = opened.epoch
        self._rows = RecordRows(opened.epoch, last_written(connection))
        return opened

    # --- writing

    def _ready(self) -> sqlite3.Connection:
        """The connection; opened anew after an unknown outcome, to show what is durable."""
        if self._connection is not None:
            return self._connection
        try:
            connection = self._connected()
        except (sqlite3.Error, OSError) as error:
            self._note_lock(locked=code(error) in LOCKED)
            raise self._unavailable(error) from error
        try:
            # What recovery found in the log may not be on the disk yet: copy and sync it.
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            epoch = connection.execute(schema.READ_JOURNAL).fetchone()[0]
        except sqlite3.Error as error:
            connection.close()
            raise self._unavailable(error) from error
        if busy or epoch != self._epoch:
            connection.close()
            if epoch != self._epoch:
                raise StoreTakenError(f"{self.path} {_TAKEN} (epoch {epoch}, not {self._epoch})")
            self._note_lock(locked=True)
            raise StoreUnavailableError(f"{self.path} {ADVICE['SQLITE_BUSY']}")
        self._note_lock(locked=False)
        self._connection = connection
        return connection

    def _note_lock(self, *, locked: bool) -> None:
        """Gives the file up when another process has held it for long."""
        now_s = monotonic()
        if not locked or self._locked_since_s is None:
            self._locked_since_s = now_s if locked else None
        elif now_s - self._locked_since_s >= TAKEN_AFTER_S:
            raise StoreTakenError(f"{self.path} {_TAKEN} (locked for {TAKEN_AFTER_S:.0f} s)")

    def _committed_at_once(self, connection: sqlite3.Connection, batch: Sequence[Record]) -> bool:
        """Writes new accepts by one statement; False, and nothing written, where that cannot be."""
        if len(batch) not in ROWS_AT_ONCE:
            return False
        rows: list[object] = []
        for record in batch:
            if not isinstance(record, AcceptRecord):
                return False
            rows.extend(self._rows.accept_row(record))
        try:
            connection.execute(schema.insert_new_accepts(len(batch)), rows)
        except sqlite3.IntegrityError:
            # One of them is held already, or another job of that id: such a statement did nothing.
            return False
        except sqlite3.Error as error:
            self._uncertain(connection, error)
        return True

    def _end(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._uncertain(connection, error)

    def _uncertain(self, connection: sqlite3.Connection, error: sqlite3.Error) -> NoReturn:
        """Says what became of a transaction whose end failed."""
        self._roll_back(connection)
        if code(error) in CERTAINLY_LOST:
            raise self._unavailable(error) from error
        self.close()
        raise StoreOutcomeUnknownError(f"{self.path} may lack the batch ({error})") from error

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.path} {advice(error)} ({error})")

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if connection.in_transaction:
            # Without a commit mark the transaction is lost as well when the file is closed.
            self.close()
