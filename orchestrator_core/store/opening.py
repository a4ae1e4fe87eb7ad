"""Reads a journal's SQLite file when it is opened: its form, its identity and all that it holds."""

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator_core.core.events import Recovered
from orchestrator_core.store import codec, schema
from orchestrator_core.store.artifact import ArtifactRecord
from orchestrator_core.store.port import JOURNAL_ID_BYTES, Opened, StoreCorruptError
from orchestrator_core.store.sqlite_errors import ADVICE

_T = TypeVar("_T")


def read_journal(path: Path, connection: sqlite3.Connection) -> Opened:
    """Makes what is missing, raises the epoch and reads all. Raises `StoreCorruptError`."""
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise StoreCorruptError(f"{path} {ADVICE['SQLITE_CORRUPT']} ({problem})")
    connection.execute("BEGIN IMMEDIATE")
    _ensure_schema(path, connection)
    connection.execute(schema.RAISE_EPOCH)
    connection.execute("COMMIT")
    row = connection.execute(schema.READ_JOURNAL).fetchone()
    epoch, pruned_last_ms, journal_id = row
    _check_identity(path, connection, epoch, journal_id)
    recovered = Recovered(
        _read(path, connection, schema.READ_ACCEPTS, codec.decode_accept),
        _read(path, connection, schema.READ_DISPATCHES, codec.DISPATCH.decode),
        _read(path, connection, schema.READ_TERMINALS, codec.TERMINAL.decode),
        _read(path, connection, schema.READ_SESSIONS, codec.SESSION.decode, "session"),
        _read(path, connection, schema.READ_DRAINS, codec.DRAIN.decode, "pool"),
        _read(path, connection, schema.READ_MODELS, codec.MODEL.decode, "model"),
    )
    artifacts = _read(path, connection, schema.READ_ARTIFACTS, codec.ARTIFACT.decode, "artifact")
    last_ms = max(pruned_last_ms, _last_ms(recovered, artifacts))
    return Opened(epoch, last_ms, recovered, journal_id, artifacts)


def last_written(connection: sqlite3.Connection) -> int:
    """The number of the last dispatch or terminal that was written."""
    return max(connection.execute(query).fetchone()[0] or 0 for query in schema.READ_LAST_WRITTEN)


def _check_identity(
    path: Path, connection: sqlite3.Connection, epoch: int, journal_id: object
) -> None:
    """The journal's own row has no checksum: hosts would believe a wrong epoch or id."""
    digits = str(journal_id)
    told = len(digits) == 2 * JOURNAL_ID_BYTES and set(digits) <= set("0123456789abcdef")
    (last_epoch,) = connection.execute(schema.READ_LAST_EPOCH).fetchone()
    if not told or (last_epoch or 0) >= epoch:
        raise StoreCorruptError(f"{path} {ADVICE['SQLITE_CORRUPT']} (its identity)")


def _ensure_schema(path: Path, connection: sqlite3.Connection) -> None:
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
        raise StoreCorruptError(f"{path} {ADVICE['SQLITE_NOTADB']} (other tables)")
    row = connection.execute(schema.READ_SCHEMA_VERSION).fetchone()
    if row is None:
        raise StoreCorruptError(f"{path} {ADVICE['SQLITE_CORRUPT']} (no journal row)")
    if row[0] != schema.SCHEMA_VERSION:
        raise StoreCorruptError(
            f"{path} has schema version {row[0]}, this orchestrator reads"
            f" {schema.SCHEMA_VERSION}: run the version that wrote it, or name another file"
        )
    for statement in schema.CREATE_LATER:
        connection.execute(statement)


def _read(
    path: Path,
    connection: sqlite3.Connection,
    query: str,
    decode: Callable[..., _T],
    kind: str = "job",
) -> tuple[_T, ...]:
    records = []
    for name, within, version, *columns in connection.execute(query):
        try:
            records.append(decode(version, codec.place(name, within), *columns))
        except codec.RecordFormatError as error:
            raise StoreCorruptError(
                f"{path} holds a record of {kind} {name} that cannot be read ({error}):"
                " run the version that wrote it, or restore a copy"
            ) from error
    return tuple(records)


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
