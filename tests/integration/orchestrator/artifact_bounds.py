"""A server that keeps artifacts within small bounds."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.integration.orchestrator.artifact_calls import CHUNK_BYTES
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator

LARGE = bytes(range(256)) * (5 << 12)
BYTES_MAX = 6 << 20
MEDIUM = LARGE[: 3 * CHUNK_BYTES + 5]
WAIT_S = 10.0


async def start(
    start_orchestrator: StartOrchestrator, directory: Path, **bounds: object
) -> Orchestrator:
    """A server with a journal in a file."""
    journal = {"kind": "sqlite", "path": str(directory / "journal.db")}
    small = {"artifact_bytes_max": BYTES_MAX, "quota_bytes": 12 << 20, "free_bytes_min": 0}
    return await start_orchestrator(None, store=journal, artifacts=small | bounds)


async def until(true: Callable[[], bool]) -> None:
    """Waits for something that nobody tells of."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - files make no events
            await asyncio.sleep(0.01)
