"""How much may be put: uploads at once, and bytes, of all clients and of each. ORCH-3097.

What arrives counts from the moment that room was set aside for it, so two uploads cannot both take
the last room. Belongs to the event loop.
"""

from collections import Counter

from orchestrator_core.artifacts import refusals
from orchestrator_core.artifacts.index import ArtifactIndex
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.errors import RefusalError


class Room:
    """What uploads have of the limits. What is in `index` counts by itself."""

    def __init__(self, limits: ArtifactsTable, index: ArtifactIndex) -> None:
        self._limits = limits
        self._index = index
        self._uploads: Counter[str] = Counter()
        self._reserved_bytes: Counter[str] = Counter()

    @property
    def uploads(self) -> int:
        """Uploads under way."""
        return self._uploads.total()

    @property
    def taken_bytes(self) -> int:
        """What counts against the quota of all: content that is stored, or being put."""
        return self._index.stored_bytes + self._reserved_bytes.total()

    def admit(self, owner: str) -> None:
        """Lets an upload begin; `dismiss` ends it. Raises `RefusalError` naming the limit."""
        limits = self._limits
        if self.uploads >= limits.uploads_max:
            text = f"{limits.uploads_max} artifacts are being put already (artifacts.uploads_max)"
            raise RefusalError(refusals.busy("artifact-uploads", text))
        if self._uploads[owner] >= limits.uploads_per_identity_max:
            bound = f"{limits.uploads_per_identity_max} (artifacts.uploads_per_identity_max)"
            text = f"{owner} puts as many artifacts at once as one client may: {bound}"
            raise RefusalError(refusals.busy("artifact-uploads", text))
        self._uploads[owner] += 1

    def dismiss(self, owner: str, reserved_bytes: int) -> None:
        """Ends an upload and gives its room back: what became of it counts by itself."""
        self._uploads[owner] -= 1
        self._uploads = +self._uploads
        self.release(owner, reserved_bytes)

    def reserve(self, owner: str, size_bytes: int) -> None:
        """Sets room aside for an upload. Raises `RefusalError` naming the limit."""
        limits, stored = self._limits, self.taken_bytes
        if stored + size_bytes > limits.quota_bytes:
            text = (
                f"all artifacts together have {stored} of {limits.quota_bytes} bytes"
                " (artifacts.quota_bytes): delete some, or wait until some expire"
            )
            raise RefusalError(refusals.no_room("artifact-quota", text))
        own = self._index.owned_bytes(owner) + self._reserved_bytes[owner]
        most = limits.quota_bytes_per_identity
        if most and own + size_bytes > most:
            text = (
                f"the artifacts of {owner} have {own} of {most} bytes"
                " (artifacts.quota_bytes_per_identity): delete some, or wait until some expire"
            )
            raise RefusalError(refusals.no_room("artifact-identity-quota", text))
        self._reserved_bytes[owner] += size_bytes

    def release(self, owner: str, reserved_bytes: int) -> None:
        """Gives room back that was set aside."""
        self._reserved_bytes[owner] -= reserved_bytes
        self._reserved_bytes = +self._reserved_bytes

    def check_count(self) -> None:
        """Raises `RefusalError` when there are as many artifacts as there may be."""
        if len(self._index) >= self._limits.count_max:
            text = (
                f"there are {len(self._index)} artifacts already (artifacts.count_max):"
                " delete some, or wait until some expire"
            )
            raise RefusalError(refusals.no_room("artifact-count", text))
