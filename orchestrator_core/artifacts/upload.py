"""One upload of an artifact, from its first byte to its place in the index."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from orchestrator_core import failpoints
from orchestrator_core.artifacts import prompts, refusals
from orchestrator_core.artifacts.description import Description
from orchestrator_core.artifacts.files import Incoming
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.store.artifact import ArtifactKind, ArtifactRecord


@contextlib.asynccontextmanager
async def uploading(artifacts: Artifacts, described: Description) -> AsyncIterator["Upload"]:
    """Room for one upload, while the block runs. Raises `RefusalError`."""
    artifacts.admit(described)
    upload = Upload(artifacts, described)
    try:
        await upload.begin()
        yield upload
    finally:
        try:
            await artifacts.finish(upload.discard())
        finally:
            artifacts.dismiss(described, upload.reserved_bytes)


class Upload:
    """One upload: `write` the content, then `finish`. Made by `uploading`."""

    def __init__(self, artifacts: Artifacts, described: Description) -> None:
        self.reserved_bytes = 0
        self.size_bytes = 0
        self._artifacts = artifacts
        self._described = described
        self._incoming: Incoming | None = None
        self._bytes_max = artifacts.limits.artifact_bytes_max
        if described.kind is ArtifactKind.INPUT:
            self._bytes_max = min(self._bytes_max, artifacts.limits.input_bytes_max)
        told = described.expected_sha256
        # What is there already needs no more room.
        known = artifacts.index.get(described.artifact_id(told)) if told else None
        self._room_bytes = 0 if known is None else known.size_bytes

    async def begin(self) -> None:
        """Takes room for what is expected, and a file. Raises `RefusalError`."""
        expected = self._described.expected_size_bytes
        if expected is not None:
            self._check_size(expected, "header.expected_size_bytes")
            self._reserve(expected)
        await self._artifacts.on_disk(self._receive)

    async def write(self, data: bytes) -> None:
        """Appends content. Raises `RefusalError`."""
        assert self._incoming is not None, "begin() comes first"
        size_bytes = self.size_bytes + len(data)
        expected = self._described.expected_size_bytes
        if expected is not None and size_bytes > expected:
            raise RefusalError(_wrong_size(size_bytes, expected))
        self._check_size(size_bytes, "chunk")
        self._reserve(size_bytes)
        self.size_bytes = size_bytes
        await self._artifacts.on_disk(partial(self._incoming.write, data))

    async def finish(self) -> tuple[ArtifactRecord, bool]:
        """Makes it an artifact, durably; True when it was one before. Raises `RefusalError`."""
        incoming, described = self._incoming, self._described
        assert incoming is not None, "begin() comes first"
        expected = described.expected_size_bytes
        if expected is not None and self.size_bytes != expected:
            raise RefusalError(_wrong_size(self.size_bytes, expected))
        failpoints.reach("artifact.received")
        prompt_bytes = await self._artifacts.on_disk(partial(_complete, incoming, described))
        if isinstance(prompt_bytes, Refusal):
            raise RefusalError(prompt_bytes)
        self._incoming = None
        reserved_bytes, self.reserved_bytes = self.reserved_bytes, 0
        return await self._artifacts.keep(described, incoming, prompt_bytes, reserved_bytes)

    async def discard(self) -> None:
        """Removes what was received, unless it became an artifact."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            with contextlib.suppress(RefusalError):
                await self._artifacts.on_disk(incoming.discard)

    def _receive(self) -> None:
        self._incoming = self._artifacts.receive()

    def _check_size(self, size_bytes: int, field: str) -> None:
        if size_bytes > self._bytes_max:
            key = "artifact_bytes_max"
            if self._bytes_max < self._artifacts.limits.artifact_bytes_max:
                key = "input_bytes_max"
            raise RefusalError(
                refusals.invalid(
                    field, f"makes {size_bytes} bytes, at most {self._bytes_max} (artifacts.{key})"
                )
            )

    def _reserve(self, size_bytes: int) -> None:
        wanted = max(0, size_bytes - self._room_bytes)
        if wanted > self.reserved_bytes:
            self._artifacts.room.reserve(self._described.owner, wanted - self.reserved_bytes)
            self.reserved_bytes = wanted


def _complete(incoming: Incoming, described: Description) -> int | Refusal:
    """Syncs what was received and checks what was told of it; the bytes of text of an input."""
    incoming.sync()
    expected = described.expected_sha256
    if expected and incoming.sha256 != expected:
        must = f"is {expected}, the content's is {incoming.sha256}: put it again"
        return refusals.invalid("header.expected_sha256", must)
    if described.kind is not ArtifactKind.INPUT:
        return 0
    prompt = prompts.read_prompt(described.media_type, incoming.content())
    if isinstance(prompt, prompts.Unfit):
        return refusals.invalid("chunk", f"is no input: {prompt.must}")
    return prompts.prompt_bytes(prompt)


def _wrong_size(size_bytes: int, expected: int) -> Refusal:
    must = f"is {expected}, the content has {'at least ' * (size_bytes > expected)}{size_bytes}"
    return refusals.invalid("header.expected_size_bytes", f"{must} bytes: put it again")
