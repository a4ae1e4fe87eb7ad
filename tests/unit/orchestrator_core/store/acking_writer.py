"""Commits batch after batch for ever and prints the number of each one that was acknowledged."""

import asyncio
import sys
from pathlib import Path

from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import batch


async def main(path: Path) -> None:
    """Runs until it is killed."""
    store = SqliteStore(path)
    await store.open()
    number = 0
    while True:
        number += 1
        await store.commit(batch(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


asyncio.run(main(Path(sys.argv[1])))
