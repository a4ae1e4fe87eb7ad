"""A client of a campaign that keeps artifacts: what it was told is kept is there, byte by byte."""

import asyncio
import random
from collections.abc import Awaitable

from faults.chaos.clients import OPTIONS
from llamaorch_client import ArtifactAbout, AsyncClient, LlamaOrchError, NotFoundError

# It keeps so many and deletes the oldest, so that all of an artifact's life goes on all the time.
KEPT_MAX = 5
BYTES_MAX = 600_000
PAUSE_S = 0.05


class Archivist:
    """Puts, reads and deletes artifacts for as long as faults happen, then reads all it has."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"{seed} archivist")  # noqa: S311 - a seed
        self._kept: dict[str, bytes] = {}
        self._number = 0
        self.read = 0
        self.problems: list[str] = []

    async def run(self, address: str, healing: asyncio.Event) -> None:
        """All of it."""
        async with AsyncClient(address, options=OPTIONS) as client:
            while not healing.is_set():
                await self._tried("put", self._put(client))
                if not self._kept:
                    continue
                await self._tried("read", self._read(client, self._chance.choice([*self._kept])))
                if len(self._kept) > KEPT_MAX:
                    await self._tried("delete", self._delete(client, next(iter(self._kept))))
                await asyncio.sleep(PAUSE_S)
            for artifact_id in self._kept:
                await self._tried("read", self._read(client, artifact_id))

    async def _tried(self, what: str, doing: Awaitable[None]) -> None:
        try:
            await doing
        except LlamaOrchError as error:
            self.problems.append(f"an artifact could not be {what}: {error}")

    async def _put(self, client: AsyncClient) -> None:
        self._number += 1
        size = self._chance.choice((1, 1_000, self._chance.randrange(BYTES_MAX)))
        content = self._chance.randbytes(size) + str(self._number).encode()
        artifact, _ = await client.artifacts.put(content, ArtifactAbout(tags=("chaos",)))
        self._kept[artifact.artifact_id] = content

    async def _read(self, client: AsyncClient, artifact_id: str) -> None:
        _, content = await client.artifacts.read(artifact_id)
        self.read += 1
        if content != self._kept[artifact_id]:
            self.problems.append(f"artifact {artifact_id} is not what was put")

    async def _delete(self, client: AsyncClient, artifact_id: str) -> None:
        del self._kept[artifact_id]
        try:
            await client.artifacts.delete(artifact_id)
        except NotFoundError:
            # It was deleted, and the answer lost.
            return
