"""Keeping the SQLite journal small: which jobs must go, and pages that the disk gets back."""

import sqlite3

from orchestrator_core.store import schema
from orchestrator_core.store.port import Keep

# Free pages are used again; a file gives them back only where they are many.
FREE_BYTES_KEPT = 64 * 1024 * 1024
# Pages given back in one go: commits wait no longer than for so many.
COMPACT_PAGES = 1_024


def superfluous(connection: sqlite3.Connection, keep: Keep, jobs_max: int) -> list[tuple[str, int]]:
    """The oldest ended jobs that are not to be kept, with their ends. O(ended jobs)."""
    due = connection.execute(schema.SELECT_ENDED, (keep.ended_since_ms, jobs_max)).fetchall()
    if due:
        return due
    (total,) = connection.execute(schema.COUNT_ENDED).fetchone()
    most = max(0, min(jobs_max, total - keep.ended_min))
    used_pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    too_large = used_pages * _pragma(connection, "page_size") > keep.bytes_max
    excess = most if too_large else min(most, max(0, total - keep.ended_max))
    return connection.execute(schema.SELECT_OLDEST, (excess,)).fetchall()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def give_back(connection: sqlite3.Connection, kept_bytes: int) -> bool:
    """Gives free pages back to the file system; True when more than is to be kept is free still.

    A file that was made by an earlier version keeps its size: its pages are used again.
    Source: sqlite.org/pragma.html#pragma_incremental_vacuum.
    """
    page_bytes, free = (_pragma(connection, name) for name in ("page_size", "freelist_count"))
    pages = min(free - kept_bytes // page_bytes, COMPACT_PAGES)
    if pages <= 0:
        return False
    # The statement gives back a page per step.
    connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    left = _pragma(connection, "freelist_count")
    return left < free and left * page_bytes > kept_bytes
