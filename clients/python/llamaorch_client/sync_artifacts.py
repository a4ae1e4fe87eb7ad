# SPDX-License-Identifier: Apache-2.0
"""Artifacts for blocking code."""

from collections.abc import Callable, Iterator
from pathlib import Path

from llamaorch_client.artifact import (
    Artifact,
    ArtifactAbout,
    ArtifactFilter,
    Lineage,
    Progress,
    Source,
)
from llamaorch_client.artifacts import Artifacts
from llamaorch_client.loop_thread import LoopThread


class SyncArtifacts:
    """The artifacts of a blocking client: methods, arguments and errors of `Artifacts`."""

    def __init__(self, artifacts: Artifacts, caller: Callable[[], LoopThread]) -> None:
        self._artifacts = artifacts
        self._caller = caller

    def put(
        self,
        source: Source,
        about: ArtifactAbout | None = None,
        *,
        progress: Progress | None = None,
        correlation_id: str | None = None,
    ) -> tuple[Artifact, bool]:
        """Stores content; True when it was there before. `progress` is called in a thread."""
        work = self._artifacts.put(source, about, progress=progress, correlation_id=correlation_id)
        return self._caller().call(work)

    def get(
        self,
        artifact_id: str,
        target: Path,
        *,
        progress: Progress | None = None,
        correlation_id: str | None = None,
    ) -> Artifact:
        """Writes content to a file, which appears only once all of it is there and right."""
        work = self._artifacts.get(
            artifact_id, target, progress=progress, correlation_id=correlation_id
        )
        return self._caller().call(work)

    def read(
        self, artifact_id: str, *, correlation_id: str | None = None
    ) -> tuple[Artifact, bytes]:
        """Returns an artifact and its content, all of it in memory."""
        return self._caller().call(self._artifacts.read(artifact_id, correlation_id=correlation_id))

    def info(
        self, artifact_id: str, *, ancestors: int = 0, correlation_id: str | None = None
    ) -> Lineage:
        """Returns what is known of an artifact, and up to so many ancestors."""
        work = self._artifacts.info(artifact_id, ancestors=ancestors, correlation_id=correlation_id)
        return self._caller().call(work)

    def list(
        self,
        where: ArtifactFilter | None = None,
        *,
        limit: int | None = None,
        correlation_id: str | None = None,
    ) -> Iterator[Artifact]:
        """Yields artifacts, newest first, page by page as they are asked for."""
        caller = self._caller()
        found = self._artifacts.list(where, limit=limit, correlation_id=correlation_id)

        async def following() -> Artifact | None:
            return await anext(found, None)

        while (artifact := caller.call(following())) is not None:
            yield artifact

    def delete(self, artifact_id: str, *, correlation_id: str | None = None) -> None:
        """Forgets an artifact."""
        self._caller().call(self._artifacts.delete(artifact_id, correlation_id=correlation_id))
