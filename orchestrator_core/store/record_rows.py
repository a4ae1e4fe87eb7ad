"""Rows of the core's records in the SQLite journal: writes them, tells whether they are there."""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import assert_never

from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.store import codec, schema
from orchestrator_core.store.port import latest_only

# Rows of one statement, the most first. Each statement gives the interpreter away several times and
# must wait for the event loop's thread to let go of it again, which takes longer than writing a
# row. So what goes into one statement is a transaction by itself, without BEGIN and COMMIT.
ROWS_AT_ONCE = (64, 48, 32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1)


class RecordRows:
    """Writes rows under one `epoch`, within the transaction that is open.

    `written` is the number of the last dispatch or terminal that is in the journal.
    """

    def __init__(self, epoch: int, written: int) -> None:
        self._epoch = epoch
        self._written = written

    def insert(self, connection: sqlite3.Connection, batch: Sequence[Record]) -> None:
        """Writes a batch. Raises `ValueError` for an id that a live job has already."""
        # Accepts first, as the dispatches and terminals of a batch may belong to them.
        accepts = [record for record in batch if isinstance(record, AcceptRecord)]
        start = 0
        for size in ROWS_AT_ONCE:
            while len(accepts) - start >= size:
                self._insert_accepts(connection, accepts[start : start + size])
                start += size
        for record in latest_only(batch):
            self._insert_other(connection, record)

    def _insert_accepts(self, connection: sqlite3.Connection, accepts: list[AcceptRecord]) -> None:
        rows = [self.accept_row(record) for record in accepts]
        statement = schema.insert_accepts(len(rows))
        if connection.execute(statement, list(chain.from_iterable(rows))).rowcount == len(rows):
            return
        for record, row in zip(accepts, rows, strict=True):
            self._insert_accept(connection, record, row)

    def accept_row(self, record: AcceptRecord) -> tuple[object, ...]:
        """The columns of an accept."""
        job_id = record.spec.job_id
        text, payload = codec.encode_accept(record, codec.place(job_id, record.seq))
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
        delete(connection, [job_id])
        connection.execute(schema.insert_accepts(1), row)

    def _insert_other(self, connection: sqlite3.Connection, record: Record) -> None:
        self._written += 1
        match record:
            case AcceptRecord():
                pass
            case DispatchRecord():
                text = codec.DISPATCH.encode(record, codec.place(record.job_id, self._written))
                connection.execute(
                    schema.INSERT_DISPATCH,
                    (
                        *(record.job_id, record.attempt, self._written, record.sent_ms),
                        *(self._epoch, codec.FORMAT_VERSION, text),
                    ),
                )
            case TerminalRecord():
                connection.execute(schema.DELETE_PAYLOAD, (b"", record.job_id))
                text = codec.TERMINAL.encode(record, codec.place(record.job_id, self._written))
                connection.execute(
                    schema.INSERT_TERMINAL,
                    (
                        *(record.job_id, self._written, record.ended_ms, self._epoch),
                        *(codec.FORMAT_VERSION, text),
                    ),
                )
            case SessionRecord():
                text = codec.SESSION.encode(record, codec.place(record.session_id, record.identity))
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
                text = codec.DRAIN.encode(record, codec.place(record.pool_id, ""))
                row = (record.pool_id, self._epoch, codec.FORMAT_VERSION, text)
                connection.execute(schema.PUT_DRAIN, row)
            case CatalogRecord(over=True):
                connection.execute(schema.DELETE_MODEL, (record.entry.card.model_id,))
            case CatalogRecord():
                model_id = record.entry.card.model_id
                text = codec.MODEL.encode(record, codec.place(model_id, ""))
                row = (model_id, self._epoch, codec.FORMAT_VERSION, text)
                connection.execute(schema.PUT_MODEL, row)
            case _:
                assert_never(record)


def holds(connection: sqlite3.Connection, record: Record) -> bool:
    """Tells whether a record is in the journal."""
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
    text = codec.SESSION.encode(record, codec.place(record.session_id, record.identity))
    return row is not None and row[0] == text


def _has_drain(connection: sqlite3.Connection, record: PoolDrainRecord) -> bool:
    row = connection.execute(schema.GET_DRAIN, (record.pool_id,)).fetchone()
    if record.over:
        return row is None
    return row is not None and row[0] == codec.DRAIN.encode(record, codec.place(record.pool_id, ""))


def _has_model(connection: sqlite3.Connection, record: CatalogRecord) -> bool:
    model_id = record.entry.card.model_id
    row = connection.execute(schema.GET_MODEL, (model_id,)).fetchone()
    if record.over:
        return row is None
    return row is not None and row[0] == codec.MODEL.encode(record, codec.place(model_id, ""))


def delete(connection: sqlite3.Connection, job_ids: Sequence[str]) -> None:
    """Deletes all rows of some jobs."""
    for statement in schema.DELETE_JOB:
        connection.executemany(statement, [(job_id,) for job_id in job_ids])
