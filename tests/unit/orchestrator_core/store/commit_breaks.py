"""A SQLite connection whose commits fail like a disk does."""

import sqlite3
from typing import Any, ClassVar

from orchestrator_core.store.memory import CommitFault


class CommitBreaks(sqlite3.Connection):
    """A connection whose next COMMITs fail as `plan` says, one entry each."""

    plan: ClassVar[list[CommitFault]] = []

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Runs a statement, or breaks when it is a COMMIT and the plan says so."""
        fault = self.plan.pop(0) if sql == "COMMIT" and self.plan else CommitFault.NONE
        if fault is CommitFault.NONE:
            return super().execute(sql, *args)
        super().execute("COMMIT" if fault is CommitFault.UNKNOWN_WRITTEN else "ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        unknown = fault in {CommitFault.UNKNOWN_WRITTEN, CommitFault.UNKNOWN_LOST}
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC" if unknown else "SQLITE_FULL"
        raise error
