"""What a journal keeps of artifacts: their index, not their content. ORCH-3097."""

import enum
from dataclasses import dataclass
from typing import TypeAlias


class ArtifactKind(enum.Enum):
    """What an artifact is for."""

    PLAN = "plan"
    DIFF = "diff"
    TRACE = "trace"
    INPUT = "input"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """One artifact; a later record with the same id replaces it.

    `seq` orders artifacts by their first put. `tags`, `parent_ids` and `labels` are sorted.
    `prompt_bytes` is the text of an input, UTF-8, without the form around it; 0 for other kinds.
    Instants are those of the core's clock, `size_bytes` is that of the content.
    """

    artifact_id: str
    seq: int
    owner: str
    kind: ArtifactKind
    media_type: str
    sha256: str
    size_bytes: int
    created_ms: int
    expires_ms: int
    prompt_bytes: int = 0
    tags: tuple[str, ...] = ()
    parent_ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    job_id: str = ""
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactForgotten:
    """An artifact is kept no longer."""

    artifact_id: str


ArtifactChange: TypeAlias = ArtifactRecord | ArtifactForgotten
