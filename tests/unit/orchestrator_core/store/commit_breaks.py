"""A SQLite connection whose commits fail like a disk does."""

import sqlite3
from typing import Any, ClassVar

from orchestrator_core.store.memory import CommitFault


def ends_transaction(connection: sqlite3.Connection, sql: str) -> bool:
    """True for a COMMIT, and for a statement that is a transaction by itself."""
    return sql == "COMMIT" or (not connection.in_transaction and sql.startswith("INSERT"))


class CommitBreaks(sqlite3.Connection):
    """A connection whose next COMMITs fail as `plan` says, one entry each."""

    plan: ClassVar[list[CommitFault]] = []

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Runs a statement, or breaks when it ends a transaction and the plan says so."""
        ends = ends_transaction(self, sql)
        fault = self.plan.pop(0) if ends and self.plan else CommitFault.NONE
        if fault is CommitFault.NONE:
            return super().execute(sql, *args)
        if fault is CommitFault.UNKNOWN_WRITTEN:
            super().execute(sql, *args)
        elif self.in_transaction:
            super().execute("ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        unknown = fault in {CommitFault.UNKNOWN_WRITTEN, CommitFault.UNKNOWN_LOST}
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC" if unknown else "SQLITE_FULL"
        raise error
