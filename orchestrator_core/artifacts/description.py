"""What a client says of an artifact, and the id that follows from it."""

import hashlib
import json
from dataclasses import dataclass, fields

from orchestrator_core.store.artifact import ArtifactKind

ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Description:
    """A checked header. `tags`, `parent_ids` and `labels` are sorted and without repetitions.

    `expected_sha256` and `expected_size_bytes` are what the content must be; empty and None: any.
    """

    owner: str
    kind: ArtifactKind
    media_type: str
    tags: tuple[str, ...] = ()
    parent_ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    job_id: str = ""
    session_id: str = ""
    expected_sha256: str = ""
    expected_size_bytes: int | None = None

    def artifact_id(self, sha256: str) -> str:
        """The id of an artifact of such content: equal for equal puts, for no others.

        It is made from the ids of the parents too, so that nothing can be its own ancestor.
        """
        told = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if not each.name.startswith("expected_")
        }
        told |= {"kind": self.kind.value, "sha256": sha256}
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
