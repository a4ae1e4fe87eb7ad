"""A process of its own that keeps artifacts on a disk that stops to answer, and then ends.

Prints what was logged while it closed.
"""

import asyncio
import contextlib
import sys
import threading
from pathlib import Path

from structlog.testing import capture_logs

from orchestrator_core.artifacts import keeper as module
from orchestrator_core.artifacts.description import Description
from orchestrator_core.artifacts.files import ArtifactFiles, Incoming
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.artifacts.upload import uploading
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.errors import RefusalError
from orchestrator_core.store.artifact import ArtifactKind
from orchestrator_core.store.memory import MemoryStore


class HungFiles(ArtifactFiles):
    """A disk whose next rename never comes back."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.hangs = threading.Event()

    def publish(self, incoming: Incoming) -> None:
        """Hangs."""
        self.hangs.set()
        threading.Event().wait()


async def put(keeper: Artifacts) -> None:
    """Puts an artifact."""
    about = Description("me", ArtifactKind.PLAN, "text/plain")
    async with uploading(keeper, about) as upload:
        await upload.write(b"content")
        await upload.finish()


async def main(directory: Path) -> None:
    """Closes while the content of an artifact is renamed."""
    store, files = MemoryStore(), HungFiles(directory)
    keeper = Artifacts(ArtifactsTable(free_bytes_min=0), files, store, lambda: 1, set)
    await keeper.open(await store.open())
    putting = asyncio.create_task(put(keeper))
    await asyncio.to_thread(files.hangs.wait)
    module.CLOSE_S = 0.1
    putting.cancel()
    with capture_logs() as lines:
        await keeper.close()
        await keeper.close()
    with contextlib.suppress(asyncio.CancelledError, RefusalError):
        await putting
    print([line["event"] for line in lines], flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
