"""The digest of a job's output: the first eight bytes, big-endian, of its SHA-256."""

import hashlib
from typing import TYPE_CHECKING, Final

from orchestrator_core.relay.retelling import text_of

if TYPE_CHECKING:
    from orchestrator_core.relay.items import Item

# The state of a hash is spread over far more memory than a token takes, all of it cold when there
# are many jobs, so it is touched once for so much text.
_GATHERED_BYTES: Final = 128


class RunningDigest:
    """The digest of text that grows."""

    __slots__ = ("_state", "_waiting")

    def __init__(self) -> None:
        self._state: hashlib._Hash | None = None
        self._waiting = b""

    def add(self, text: bytes) -> None:
        """Takes the text that comes next."""
        self._waiting = waiting = self._waiting + text
        if len(waiting) >= _GATHERED_BYTES:
            self._hashed()

    def value(self) -> int:
        """Digest of all text so far."""
        return int.from_bytes(self._hashed().digest()[:8], "big")

    def _hashed(self) -> "hashlib._Hash":
        if self._state is None:
            self._state = hashlib.sha256()
        self._state.update(self._waiting)
        self._waiting = b""
        return self._state


def digest_within(items: "list[Item]", text_offset: int) -> int:
    """Digest of the text before a place, which items have from the beginning on. O(text)."""
    digest, done = RunningDigest(), 0
    for item in items:
        if item.text_bytes and done < text_offset:
            text = text_of(item.entry)[done - item.text_offset : text_offset - item.text_offset]
            digest.add(text)
            done += len(text)
    return digest.value()
