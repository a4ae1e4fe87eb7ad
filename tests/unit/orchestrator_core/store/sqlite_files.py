"""Journals as files that a test changes."""

import sqlite3
from pathlib import Path

from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import batch


async def filled(path: Path, batches: int = 3) -> None:
    """Writes a journal and closes it."""
    store = SqliteStore(path)
    await store.open()
    for number in range(1, batches + 1):
        await store.commit(batch(number))
    await store.close()


def change(path: Path, statement: str) -> None:
    """Changes the closed file behind the orchestrator's back."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()
