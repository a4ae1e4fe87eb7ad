# SPDX-License-Identifier: Apache-2.0
"""Artifacts as clients see them: plans, diffs, traces, inputs (ORCH-3097, ORCH-3098)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from llamaorch_client.request import refuse_text

Source = Path | bytes | BinaryIO
"""Content to put: a file by its path, bytes, or what can be read from."""

Progress = Callable[[int, int | None], None]
"""Is told of the bytes so far, and of all where that is known."""


class ArtifactKind(StrEnum):
    """What an artifact is for."""

    UNSPECIFIED = "UNSPECIFIED"
    PLAN = "PLAN"
    DIFF = "DIFF"
    TRACE = "TRACE"
    INPUT = "INPUT"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactAbout:
    """What is said of an artifact when it is put. Parents must exist."""

    kind: ArtifactKind = ArtifactKind.OTHER
    media_type: str = ""
    tags: Sequence[str] = ()
    parent_ids: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    job_id: str = ""
    session_id: str = ""

    def __post_init__(self) -> None:
        refuse_text(self, "tags", "parent_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What is known of stored content. `expires_at` is later while a live job needs it."""

    artifact_id: str
    sha256: str
    size_bytes: int
    kind: ArtifactKind
    media_type: str
    tags: tuple[str, ...] = ()
    parent_ids: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    job_id: str = ""
    session_id: str = ""
    owner: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """An artifact and its ancestors that are kept, nearest first; `omitted`: there are more."""

    artifact: Artifact
    ancestors: tuple[Artifact, ...] = ()
    omitted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFilter:
    """Which artifacts to list; what is unset does not restrict. All of `tags` must be there."""

    kind: ArtifactKind = ArtifactKind.UNSPECIFIED
    tags: Sequence[str] = ()
    parent_id: str = ""
    job_id: str = ""
    session_id: str = ""
    created_from: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        refuse_text(self, "tags")
