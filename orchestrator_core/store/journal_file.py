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
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import NoReturn, TypeVar, assert_never

from orchestrator_core.core.effects import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.events import Recovered
from orchestrator_core.store import artifact_rows, codec, schema, space
from orchestrator_core.store.artifact import ArtifactChange, ArtifactRecord
from orchestrator_core.store.port import (
    JOURNAL_ID_BYTES,
    Keep,
    Opened,
    StoreCorruptError,
    StoreError,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
    latest_only,
)

LOCK_WAIT_S = 0.25
# A copy or a look into the file takes seconds; who has held it for longer will not give it back.
TAKEN_AFTER_S = 30.0
WAL_BYTES_KEPT = 64 * 1024 * 1024
# Rows of one statement, the most first. Each statement gives the interpreter away several times and
# must wait for the event loop's thread to let go of it again, which takes longer than writing a
# row. So what goes into one statement is a transaction by itself, without BEGIN and COMMIT.
_ROWS_AT_ONCE = (64, 48, 32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1)

Connect = Callable[[Path], sqlite3.Connection]

_T = TypeVar("_T")

_CERTAINLY_LOST = frozenset({"SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY"})

_LOCKED = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"})
_TAKEN = "was taken over by another process: stop one of the two, or give them a file each"

_ADVICE = {
    "SQLITE_NOTADB": "is not a journal: move it away, or name another file",
    "SQLITE_CORRUPT": "is damaged: restore a copy, or move it and its -wal away to begin anew",
    "SQLITE_BUSY": "is in use by another orchestrator: stop that one, or name another file",
    "SQLITE_LOCKED": "is in use by another orchestrator: stop that one, or name another file",
    "SQLITE_CANTOPEN": "cannot be opened: check that its directory exists and may be written",
    "SQLITE_READONLY": "cannot be written: check the permissions of the file and its file system",
    "SQLITE_PERM": "cannot be written: check the permissions of the file and its file system",
    "SQLITE_FULL": "cannot be written: the disk is full, make room",
}


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
        self._written = 0
        self._locked_since_s: float | None = None

    def open(self) -> Opened:
        """Opens or creates the journal and raises its epoch. Raises `StoreCorruptError`."""
        try:
            self._create_file()
            self._connection = self._connected()
            return self._opened(self._connection)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StoreCorruptError(f"{self.path} {_advice(error)} ({error})") from error
        except UnicodeDecodeError as error:
            # SQLite quotes a name that is none any more.
            self.close()
            raise StoreCorruptError(f"{self.path} {_ADVICE['SQLITE_CORRUPT']}") from error
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
            self._insert(connection, batch)
        except sqlite3.IntegrityError as error:
            self._roll_back(connection)
            raise ValueError(f"{self.path}: a record of a job that was never accepted") from error
        except sqlite3.Error as error:
            # Nothing with a commit mark has been written yet.
            self._roll_back(connection)
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
        except BaseException:
            self._roll_back(connection)
            raise
        self._end(connection)

    def holds(self, batch: Sequence[Record]) -> bool:
        """Tells whether every record of a batch is durable. Raises `StoreUnavailableError`."""
        connection = self._ready()
        try:
            return all(_has(connection, record) for record in latest_only(batch))
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error

    def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """Writes changes of the index of artifacts. Raises as `Store.write_artifacts` says."""
        connection = self._ready()
        try:
            connection.execute("BEGIN IMMEDIATE")
            artifact_rows.write(connection, changes, self._epoch)
        except sqlite3.Error as error:
            # Nothing with a commit mark has been written yet.
            self._roll_back(connection)
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
        self._end(connection)

    def prune_chunk(self, keep: Keep, jobs_max: int) -> int:
        """Deletes at most `jobs_max` ended jobs that are not to be kept; returns how many."""
        connection = self._ready()
        try:
            connection.execute("BEGIN IMMEDIATE")
            ended = space.superfluous(connection, keep, jobs_max)
            _delete(connection, [job_id for job_id, _ in ended])
            if ended:
                last_ms = ended[-1][1]
                connection.execute(schema.RAISE_PRUNED_LAST_MS, (last_ms, last_ms))
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
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
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error

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
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreCorruptError(f"{self.path} {_ADVICE['SQLITE_CORRUPT']} ({problem})")
        connection.execute("BEGIN IMMEDIATE")
        self._ensure_schema(connection)
        connection.execute(schema.RAISE_EPOCH)
        connection.execute("COMMIT")
        row = connection.execute(schema.READ_JOURNAL).fetchone()
        self._epoch, pruned_last_ms, journal_id = row
        self._check_identity(connection, journal_id)
        self._written = max(
            connection.execute(query).fetchone()[0] or 0 for query in schema.READ_LAST_WRITTEN
        )
        recovered = Recovered(
            self._read(connection, schema.READ_ACCEPTS, codec.decode_accept),
            self._read(connection, schema.READ_DISPATCHES, codec.decode_dispatch),
            self._read(connection, schema.READ_TERMINALS, codec.decode_terminal),
            self._read(connection, schema.READ_SESSIONS, codec.decode_session, "session"),
            self._read(connection, schema.READ_DRAINS, codec.decode_drain, "pool"),
            self._read(connection, schema.READ_MODELS, codec.decode_model, "model"),
        )
        artifacts = self._read(connection, schema.READ_ARTIFACTS, codec.decode_artifact, "artifact")
        last_ms = max(pruned_last_ms, _last_ms(recovered, artifacts))
        return Opened(self._epoch, last_ms, recovered, journal_id, artifacts)

    def _check_identity(self, connection: sqlite3.Connection, journal_id: object) -> None:
        """The journal's own row has no checksum: hosts would believe a wrong epoch or id."""
        digits = str(journal_id)
        told = len(digits) == 2 * JOURNAL_ID_BYTES and set(digits) <= set("0123456789abcdef")
        (last_epoch,) = connection.execute(schema.READ_LAST_EPOCH).fetchone()
        if not told or (last_epoch or 0) >= self._epoch:
            raise StoreCorruptError(f"{self.path} {_ADVICE['SQLITE_CORRUPT']} (its identity)")

    def _ensure_schema(self, connection: sqlite3.Connection) -> None:
        tables = {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if not tables:
            for statement in schema.CREATE:
                connection.execute(statement)
            journal_id = secrets.token_hex(JOURNAL_ID_BYTES)
            connection.execute(schema.INSERT_JOURNAL, (schema.SCHEMA_VERSION, journal_id))
        elif "journal" not in tables:
            raise StoreCorruptError(f"{self.path} {_ADVICE['SQLITE_NOTADB']} (other tables)")
        row = connection.execute(schema.READ_SCHEMA_VERSION).fetchone()
        if row is None:
            raise StoreCorruptError(f"{self.path} {_ADVICE['SQLITE_CORRUPT']} (no journal row)")
        if row[0] != schema.SCHEMA_VERSION:
            raise StoreCorruptError(
                f"{self.path} has schema version {row[0]}, this orchestrator reads"
                f" {schema.SCHEMA_VERSION}: run the version that wrote it, or name another file"
            )
        for statement in schema.CREATE_LATER:
            connection.execute(statement)

    def _read(
        self,
        connection: sqlite3.Connection,
        query: str,
        decode: Callable[..., _T],
        kind: str = "job",
    ) -> tuple[_T, ...]:
        records = []
        for name, within, version, *columns in connection.execute(query):
            try:
                records.append(decode(version, _place(name, within), *columns))
            except codec.RecordFormatError as error:
                raise StoreCorruptError(
                    f"{self.path} holds a record of {kind} {name} that cannot be read ({error}):"
                    " run the version that wrote it, or restore a copy"
                ) from error
        return tuple(records)

    # --- writing

    def _ready(self) -> sqlite3.Connection:
        """The connection; opened anew after an unknown outcome, to show what is durable."""
        if self._connection is not None:
            return self._connection
        try:
            connection = self._connected()
        except (sqlite3.Error, OSError) as error:
            self._note_lock(locked=_name(error) in _LOCKED)
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
        try:
            # What recovery found in the log may not be on the disk yet: copy and sync it.
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            epoch = connection.execute(schema.READ_JOURNAL).fetchone()[0]
        except sqlite3.Error as error:
            connection.close()
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
        if busy or epoch != self._epoch:
            connection.close()
            if epoch != self._epoch:
                raise StoreTakenError(f"{self.path} {_TAKEN} (epoch {epoch}, not {self._epoch})")
            self._note_lock(locked=True)
            raise StoreUnavailableError(f"{self.path} {_ADVICE['SQLITE_BUSY']}")
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
        if len(batch) not in _ROWS_AT_ONCE:
            return False
        rows: list[object] = []
        for record in batch:
            if not isinstance(record, AcceptRecord):
                return False
            rows.extend(self._accept_row(record))
        try:
            connection.execute(schema.insert_new_accepts(len(batch)), rows)
        except sqlite3.IntegrityError:
            # One of them is held already, or another job of that id: such a statement did nothing.
            return False
        except sqlite3.Error as error:
            self._uncertain(connection, error)
        return True

    def _insert(self, connection: sqlite3.Connection, batch: Sequence[Record]) -> None:
        # Accepts first, as the dispatches and terminals of a batch may belong to them.
        accepts = [record for record in batch if isinstance(record, AcceptRecord)]
        start = 0
        for size in _ROWS_AT_ONCE:
            while len(accepts) - start >= size:
                self._insert_accepts(connection, accepts[start : start + size])
                start += size
        for record in latest_only(batch):
            self._insert_other(connection, record)

    def _insert_accepts(self, connection: sqlite3.Connection, accepts: list[AcceptRecord]) -> None:
        rows = [self._accept_row(record) for record in accepts]
        statement = schema.insert_accepts(len(rows))
        if connection.execute(statement, list(chain.from_iterable(rows))).rowcount == len(rows):
            return
        for record, row in zip(accepts, rows, strict=True):
            self._insert_accept(connection, record, row)

    def _accept_row(self, record: AcceptRecord) -> tuple[object, ...]:
        job_id = record.spec.job_id
        text, payload = codec.encode_accept(record, _place(job_id, record.seq))
        return (
            *(job_id, record.seq, record.accepted_ms, self._epoch),
            *(codec.FORMAT_VERSION, text, payload),
        )

    def _insert_accept(
        self, connection: sqlite3.Connection, record: AcceptRecord, row: tuple[object, ...]
    ) -> None:
        """Writes one accept where some row is held already, be it this one or another."""
        job_id = record.spec.job_id
        if connection.execute(schema.insert_accepts(1), row).rowcount == 1:
            return
        (seq,) = connection.execute(schema.ACCEPT_SEQ, (job_id,)).fetchone()
        if seq == record.seq:
            return
        # The id of a job that ended was used again after the core had forgotten it.
        if connection.execute(schema.HAS_TERMINAL, (job_id,)).fetchone() is None:
            raise ValueError(f"job {job_id} is accepted already and has not ended")
        _delete(connection, [job_id])
        connection.execute(schema.insert_accepts(1), row)

    def _insert_other(self, connection: sqlite3.Connection, record: Record) -> None:
        self._written += 1
        match record:
            case AcceptRecord():
                pass
            case DispatchRecord():
                text = codec.encode_dispatch(record, _place(record.job_id, self._written))
                connection.execute(
                    schema.INSERT_DISPATCH,
                    (
                        *(record.job_id, record.attempt, self._written, record.sent_ms),
                        *(self._epoch, codec.FORMAT_VERSION, text),
                    ),
                )
            case TerminalRecord():
                connection.execute(schema.DELETE_PAYLOAD, (b"", record.job_id))
                text = codec.encode_terminal(record, _place(record.job_id, self._written))
                connection.execute(
                    schema.INSERT_TERMINAL,
                    (
                        *(record.job_id, self._written, record.ended_ms, self._epoch),
                        *(codec.FORMAT_VERSION, text),
                    ),
                )
            case SessionRecord():
                text = codec.encode_session(record, _place(record.session_id, record.identity))
                connection.execute(
                    schema.PUT_SESSION,
                    (
                        *(record.identity, record.session_id, self._epoch),
                        *(codec.FORMAT_VERSION, text),
                    ),
                )
            case SessionForgotten():
                connection.execute(schema.DELETE_SESSION, (record.identity, record.session_id))
            case PoolDrainRecord(over=True):
                connection.execute(schema.DELETE_DRAIN, (record.pool_id,))
            case PoolDrainRecord():
                text = codec.encode_drain(record, _place(record.pool_id, ""))
                row = (record.pool_id, self._epoch, codec.FORMAT_VERSION, text)
                connection.execute(schema.PUT_DRAIN, row)
            case CatalogRecord(over=True):
                connection.execute(schema.DELETE_MODEL, (record.entry.card.model_id,))
            case CatalogRecord():
                model_id = record.entry.card.model_id
                text = codec.encode_model(record, _place(model_id, ""))
                row = (model_id, self._epoch, codec.FORMAT_VERSION, text)
                connection.execute(schema.PUT_MODEL, row)
            case _:
                assert_never(record)

    def _end(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._uncertain(connection, error)

    def _uncertain(self, connection: sqlite3.Connection, error: sqlite3.Error) -> NoReturn:
        """Says what became of a transaction whose end failed."""
        self._roll_back(connection)
        if _name(error) in _CERTAINLY_LOST:
            raise StoreUnavailableError(f"{self.path} {_advice(error)} ({error})") from error
        self.close()
        raise StoreOutcomeUnknownError(f"{self.path} may lack the batch ({error})") from error

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if connection.in_transaction:
            # Without a commit mark the transaction is lost as well when the file is closed.
            self.close()


def _place(name: str, within: int | str) -> str:
    """What a record's checksum covers of its row."""
    return f"{name} {within} "


def _has(connection: sqlite3.Connection, record: Record) -> bool:
    match record:
        case AcceptRecord():
            found = connection.execute(schema.HAS_ACCEPT, (record.spec.job_id, record.seq))
        case DispatchRecord():
            found = connection.execute(schema.HAS_DISPATCH, (record.job_id, record.attempt))
        case TerminalRecord():
            found = connection.execute(schema.HAS_TERMINAL, (record.job_id,))
        case SessionRecord() | SessionForgotten():
            return _has_session(connection, record)
        case PoolDrainRecord():
            return _has_drain(connection, record)
        case CatalogRecord():
            return _has_model(connection, record)
        case _:
            assert_never(record)
    return found.fetchone() is not None


def _has_session(connection: sqlite3.Connection, record: SessionRecord | SessionForgotten) -> bool:
    key = (record.identity, record.session_id)
    row = connection.execute(schema.GET_SESSION, key).fetchone()
    if isinstance(record, SessionForgotten):
        return row is None
    text = codec.encode_session(record, _place(record.session_id, record.identity))
    return row is not None and row[0] == text


def _has_drain(connection: sqlite3.Connection, record: PoolDrainRecord) -> bool:
    row = connection.execute(schema.GET_DRAIN, (record.pool_id,)).fetchone()
    if record.over:
        return row is None
    return row is not None and row[0] == codec.encode_drain(record, _place(record.pool_id, ""))


def _has_model(connection: sqlite3.Connection, record: CatalogRecord) -> bool:
    model_id = record.entry.card.model_id
    row = connection.execute(schema.GET_MODEL, (model_id,)).fetchone()
    if record.over:
        return row is None
    return row is not None and row[0] == codec.encode_model(record, _place(model_id, ""))


def _delete(connection: sqlite3.Connection, job_ids: Sequence[str]) -> None:
    for statement in schema.DELETE_JOB:
        connection.executemany(statement, [(job_id,) for job_id in job_ids])


def _last_ms(recovered: Recovered, artifacts: Sequence[ArtifactRecord]) -> int:
    return max(
        0,
        *(record.created_ms for record in artifacts),
        *(record.accepted_ms for record in recovered.accepts),
        *(record.sent_ms for record in recovered.dispatches),
        *(record.ended_ms for record in recovered.terminals),
        *(record.used_ms for record in recovered.sessions),
        *(record.since_ms for record in recovered.drains),
        *(record.entry.updated_ms for record in recovered.models),
        0,
    )


def _name(error: Exception) -> str:
    """Returns the primary result code, e.g. "SQLITE_IOERR" for "SQLITE_IOERR_FSYNC"."""
    name = getattr(error, "sqlite_errorname", "")
    return "_".join(name.split("_")[:2])


def _advice(error: Exception) -> str:
    if isinstance(error, OSError):
        return _ADVICE["SQLITE_CANTOPEN"]
    return _ADVICE.get(_name(error), "failed: look at the file system's health")
