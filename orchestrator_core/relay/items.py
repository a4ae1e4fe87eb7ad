"""What comes into an output log, and what it holds. Both are made for every batch of tokens.

So neither is frozen, which would take several times as long, and nobody changes them; and both have
a constructor of their own, as mypyc calls one that `dataclass` made like any function of Python.
"""

from dataclasses import dataclass
from typing import Final

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

    `prefix_digest` is the digest of all text before the item, None where it is not known.
    `first_index` is that of its first piece, 0 for events other than text.
    """

    attempt: int
    text_offset: int
    text_bytes: int
    prefix_digest: int | None
    entry: bytes
    first_index: int

    def __init__(
        self,
        attempt: int,
        text_offset: int,
        text_bytes: int,
        prefix_digest: int | None,
        entry: bytes,
        first_index: int = 0,
    ) -> None:
        self.attempt = attempt
        self.text_offset = text_offset
        self.text_bytes = text_bytes
        self.prefix_digest = prefix_digest
        self.entry = entry
        self.first_index = first_index

    @property
    def end(self) -> int:
        """UTF-8 bytes of output up to and with this item."""
        return self.text_offset + self.text_bytes
