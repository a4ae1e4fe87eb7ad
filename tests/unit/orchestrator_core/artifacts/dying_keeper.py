"""A process of its own that keeps artifacts until its failpoint kills it.

Prints the id of each artifact that it was told to be kept, or deleted, once that was promised.
"""

import asyncio
import os
import sys
from pathlib import Path

from orchestrator_core import failpoints
from orchestrator_core.artifacts.description import Description
from orchestrator_core.artifacts.files import ArtifactFiles
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.artifacts.upload import uploading
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.store.artifact import ArtifactKind
from orchestrator_core.store.sqlite import SqliteStore


async def main(directory: Path) -> None:
    """Puts three artifacts and deletes the first."""
    store = SqliteStore(directory / "journal.db")
    files = ArtifactFiles(directory / "artifacts")
    keeper = Artifacts(ArtifactsTable(free_bytes_min=0), files, store, lambda: 1, set)
    await keeper.open(await store.open())
    ids = []
    for number in range(3):
        about = Description("me", ArtifactKind.PLAN, "text/plain", tags=(str(number),))
        async with uploading(keeper, about) as upload:
            await upload.write(b"content %d" % (number % 2))
            record, _ = await upload.finish()
        ids.append(record.artifact_id)
        print("put", record.artifact_id, flush=True)  # noqa: T201 - the test reads it
    await keeper.delete(ids[1])
    print("deleted", ids[1], flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    asyncio.run(main(Path(sys.argv[1])))
