"""What comes into an output log, and what it holds. Both are made for every batch of tokens.

So neither is frozen, which would take several times as long, and nobody changes them; and both have
a constructor of their own, as mypyc calls one that `dataclass` made like any function of Python.
"""

from dataclasses import dataclass
from typing import Final

from orchestrator_core.relay.retelling import digest_before
from orchestrator_core.wire.frames import encode_token_event

# What an item costs beside its entry in CPython 3.11: with pieces of a few bytes, most of it.
ITEM_BYTES: Final = 150


@dataclass(slots=True, init=False)
class Frame:
    """Text of one attempt as it came from the pool. `chunk` is an encoded TokenBatch."""

    attempt: int
    first_index: int
    pieces: int
    text_offset: int
    text_bytes: int
    chunk: bytes

    def __init__(
        self,
        attempt: int,
        first_index: int,
        pieces: int,
        text_offset: int,
        text_bytes: int,
        chunk: bytes,
    ) -> None:
        self.attempt = attempt
        self.first_index = first_index
        self.pieces = pieces
        self.text_offset = text_offset
        self.text_bytes = text_bytes
        self.chunk = chunk

    def with_chunk(self, chunk: bytes, pieces: int, text_bytes: int) -> "Frame":
        """The frame with fewer pieces."""
        return Frame(self.attempt, self.first_index, pieces, self.text_offset, text_bytes, chunk)


@dataclass(slots=True, init=False)
class Item:
    """One encoded event. `text_bytes` is 0 for events other than text.

    `event_digest` is the digest of all text before an event, None where it is not known; text says
    it itself. `first_index` is that of its first piece, 0 for events other than text.
    """

    attempt: int
    text_offset: int
    text_bytes: int
    event_digest: int | None
    entry: bytes
    first_index: int

    def __init__(
        self,
        attempt: int,
        text_offset: int,
        text_bytes: int,
        event_digest: int | None,
        entry: bytes,
        first_index: int = 0,
    ) -> None:
        self.attempt = attempt
        self.text_offset = text_offset
        self.text_bytes = text_bytes
        self.event_digest = event_digest
        self.entry = entry
        self.first_index = first_index

    @property
    def prefix_digest(self) -> int | None:
        """Digest of all text before the item. Opens the entry of text."""
        return digest_before(self.entry) if self.text_bytes else self.event_digest

    def leads(self, following: "Item") -> bool:
        """True for an event at the place where the next item begins."""
        return not self.text_bytes and self.text_offset == following.text_offset

    @property
    def end(self) -> int:
        """UTF-8 bytes of output up to and with this item."""
        return self.text_offset + self.text_bytes


def text_item(frame: Frame) -> Item:
    """The item of a frame; its chunk is kept as it came."""
    return Item(
        frame.attempt,
        frame.text_offset,
        frame.text_bytes,
        None,
        encode_token_event(frame.chunk),
        frame.first_index,
    )
