"""What errors of SQLite mean for the journal, and what to do about them."""

CERTAINLY_LOST = frozenset({"SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY"})
LOCKED = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"})

ADVICE = {
    "SQLITE_NOTADB": "is not a journal: move it away, or name another file",
    "SQLITE_CORRUPT": "is damaged: restore a copy, or move it and its -wal away to begin anew",
    "SQLITE_BUSY": "is in use by another orchestrator: stop that one, or name another file",
    "SQLITE_LOCKED": "is in use by another orchestrator: stop that one, or name another file",
    "SQLITE_CANTOPEN": "cannot be opened: check that its directory exists and may be written",
    "SQLITE_READONLY": "cannot be written: check the permissions of the file and its file system",
    "SQLITE_PERM": "cannot be written: check the permissions of the file and its file system",
    "SQLITE_FULL": "cannot be written: the disk is full, make room",
}


def code(error: Exception) -> str:
    """Returns the primary result code, e.g. "SQLITE_IOERR" for "SQLITE_IOERR_FSYNC"."""
    name = getattr(error, "sqlite_errorname", "")
    return "_".join(name.split("_")[:2])


def advice(error: Exception) -> str:
    """What is wrong with the file, and what to change; a phrase that follows its path."""
    if isinstance(error, OSError):
        return ADVICE["SQLITE_CANTOPEN"]
    return ADVICE.get(code(error), "failed: look at the file system's health")
