"""Keeping the SQLite journal small: which jobs must go, and pages that the disk gets back."""

import sqlite3

from orchestrator_core.store import schema
from orchestrator_core.store.port import Keep

# Free pages are used again; a file gives them back only where they are many. A page has 4 KiB.
FREE_PAGES_KEPT = 1_024
VACUUM_PAGES = 1_024


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


def give_back(connection: sqlite3.Connection) -> bool:
    """Gives a few free pages back to the disk; False when the rest is worth keeping.

    Source: sqlite.org/pragma.html#pragma_incremental_vacuum.
    """
    pages, free = (_pragma(connection, name) for name in ("page_count", "freelist_count"))
    if not _pragma(connection, "auto_vacuum") or free < max(FREE_PAGES_KEPT, pages // 4):
        return False
    # Each row that is read frees a page.
    connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
    return True
