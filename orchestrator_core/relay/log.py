"""The output of one job, as far as it is kept here, and readers that follow it.

Items are encoded events, ready to be sent; chunks of text are never opened on the way. A reader is
only a position, so a slow or absent one costs no memory: what it has not read is evicted under the
cap like anything else, and it is then told RESUME_WINDOW. LO-301, LO-302.
"""

import asyncio
import hashlib
from bisect import bisect_left
from dataclasses import dataclass

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.wire.frames import encode_token_event

# Sending several events in one message is the main lever on cost per token; this bounds such a
# message.
MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """Text of one attempt as it came from the pool. `chunk` is an encoded TokenBatch."""

    attempt: int
    first_index: int
    pieces: int
    text_offset: int
    text_bytes: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded event. `text_bytes` is 0 for events other than text."""

    attempt: int
    text_offset: int
    text_bytes: int
    entry: bytes


def prefix_digest(text: bytes) -> int:
    """First eight bytes, big-endian, of the SHA-256 of all output before a place."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


class OutputLog:
    """Events of one job in order; text beyond `bytes_max` is evicted, oldest first.

    `attempt` is the only attempt whose text is taken, 0 while there is none.
    """

    __slots__ = (
        "_base",
        "_bytes_max",
        "_items",
        "_readers",
        "attempt",
        "bytes_held",
        "final",
        "metrics",
        "metrics_version",
        "next_index",
        "next_offset",
        "text_bytes_expected",
    )

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._items: list[Item] = []
        self._base = 0
        self._readers: set[Reader] = set()
        self.attempt = 0
        self.next_index = 0
        self.next_offset = 0
        self.bytes_held = 0
        self.final: bytes | None = None
        self.text_bytes_expected: int | None = None
        self.metrics: bytes = b""
        self.metrics_version = 0

    # --- writing

    def begin_attempt(self, attempt: int) -> None:
        """Takes text of this attempt from now on, and of no other. LO-304."""
        if attempt != self.attempt:
            self.attempt = attempt
            self.next_index = 0

    def append_text(self, frame: Frame) -> bool | None:
        """Takes a frame. True: taken; False: known already or of another attempt; None: a gap."""
        if frame.attempt != self.attempt or self._complete():
            return False
        end = frame.text_offset + frame.text_bytes
        if frame.text_offset > self.next_offset:
            return None
        self.next_index = max(self.next_index, frame.first_index + frame.pieces)
        if end <= self.next_offset:
            return False
        chunk, offset = frame.chunk, frame.text_offset
        if offset < self.next_offset:
            batch = events_pb2.TokenBatch.FromString(frame.chunk)
            chunk, offset = self._divide(batch, self.next_offset)[1], self.next_offset
        self._append(Item(frame.attempt, offset, end - offset, encode_token_event(chunk)))
        self.next_offset = end
        return True

    def append_event(self, entry: bytes) -> None:
        """Adds an event other than text, at the present place of the output."""
        self._append(Item(self.attempt, self.next_offset, 0, entry))

    def set_metrics(self, entry: bytes) -> None:
        """Replaces the metrics event; readers get the latest one only."""
        self.metrics = entry
        self.metrics_version += 1
        self._wake()

    def finish(self, entry: bytes, text_bytes: int | None) -> None:
        """Sets the outcome. It is sent after `text_bytes` of output, None: whatever there is."""
        if self.final is None:
            self.final = entry
            self.text_bytes_expected = text_bytes
            self._wake()

    def wake(self) -> None:
        """Lets readers look again, for something that is not in the log."""
        self._wake()

    def evict_all(self) -> int:
        """Drops all items; returns the bytes freed. Readers behind are told RESUME_WINDOW."""
        freed = self.bytes_held
        self._base += len(self._items)
        self._items = []
        self.bytes_held = 0
        self._wake()
        return freed

    def _append(self, item: Item) -> None:
        self._items.append(item)
        self.bytes_held += len(item.entry)
        if self.bytes_held > self._bytes_max:
            self._evict()
        self._wake()

    def _evict(self) -> None:
        """Drops the oldest items down to three quarters of the cap: cheap on average."""
        count = 0
        while self.bytes_held > self._bytes_max * 3 // 4 and count < len(self._items) - 1:
            self.bytes_held -= len(self._items[count].entry)
            count += 1
        del self._items[:count]
        self._base += count

    def _wake(self) -> None:
        for reader in self._readers:
            reader.changed.set()

    def _complete(self) -> bool:
        """True when no more text may come: the outcome is known and all text before it is here."""
        expected = self.text_bytes_expected
        return self.final is not None and (expected is None or self.next_offset >= expected)

    # --- reading

    @property
    def complete(self) -> bool:
        """True when the outcome may be sent to a reader that has everything before it."""
        return self._complete()

    def open(self, resume: events_pb2.ResumePoint | None) -> "Reader":
        """Opens a reader at the beginning or at a resume point.

        Raises:
            RefusalError: RESUME_WINDOW, naming the oldest offset held, when the point is not held
            any
                more, lies in the future, or its digest differs from what is held.
        """
        if resume is None or (resume.text_offset == 0 and resume.attempt == 0):
            if self._items and self._items[0].text_offset > 0:
                raise self._out_of_window("the beginning is no longer held")
            return self._reader(self._base)
        return self._reader(self._locate(resume))

    def close(self, reader: "Reader") -> None:
        """Forgets a reader."""
        self._readers.discard(reader)

    def digest(self) -> int | None:
        """Digest of all text so far; None when its beginning is no longer held. O(text)."""
        text = self._text()
        return None if text is None else prefix_digest(text)

    def item(self, position: int) -> Item | None:
        """Item at an absolute position; None when there is none yet.

        Raises:
            RefusalError: RESUME_WINDOW when it was evicted.
        """
        if position < self._base:
            raise self._out_of_window("the reader fell behind what is held")
        index = position - self._base
        return self._items[index] if index < len(self._items) else None

    def _reader(self, position: int) -> "Reader":
        reader = Reader(self, position)
        self._readers.add(reader)
        return reader

    def _locate(self, resume: events_pb2.ResumePoint) -> int:
        """Absolute position of the first item that a resuming reader has not seen."""
        offset = resume.text_offset
        if offset > self.next_offset:
            if self._awaits_text():
                return self._base
            raise self._out_of_window("the resume point lies beyond the output")
        if self._items and offset < self._items[0].text_offset:
            raise self._out_of_window("the resume point is no longer held")
        if not self._items and offset < self.next_offset:
            raise self._out_of_window("the resume point is no longer held")
        self._check_digest(resume)
        index = bisect_left(self._items, offset, key=lambda item: item.text_offset)
        if index and _end(self._items[index - 1]) > offset:
            index -= 1
            self._split(index, offset)
            index += 1
        while index < len(self._items) and self._seen(self._items[index], resume):
            index += 1
        return self._base + index

    def _awaits_text(self) -> bool:
        """After a restart the text may still be on its way from the pool that holds it."""
        return self.next_offset == 0 and not self._complete()

    @staticmethod
    def _seen(item: Item, resume: events_pb2.ResumePoint) -> bool:
        """Events without text at the resume point that belong to attempts the reader knows."""
        return (
            item.text_bytes == 0
            and item.text_offset == resume.text_offset
            and item.attempt <= resume.attempt
        )

    def _check_digest(self, resume: events_pb2.ResumePoint) -> None:
        """Compares digests where the text is held; where not, the reader's own check decides."""
        text = self._text()
        if text is None:
            return
        if prefix_digest(text[: resume.text_offset]) != resume.prefix_digest:
            raise self._out_of_window("the digest of the text before the resume point differs")

    def _text(self) -> bytes | None:
        """All text so far, or None when its beginning is no longer held."""
        texts = [item for item in self._items if item.text_bytes]
        if not texts:
            return b"" if self.next_offset == 0 else None
        if texts[0].text_offset > 0:
            return None
        return b"".join(_pieces(item.entry) for item in texts)

    def _split(self, index: int, offset: int) -> None:
        """Splits a text item in two, so that a reader can go on within it."""
        item = self._items[index]
        head, tail = self._divide(_batch(item.entry), offset)
        cut = offset - item.text_offset
        halves = (
            Item(item.attempt, item.text_offset, cut, encode_token_event(head)),
            Item(item.attempt, offset, item.text_bytes - cut, encode_token_event(tail)),
        )
        self._items[index : index + 1] = halves
        self.bytes_held += sum(len(half.entry) for half in halves) - len(item.entry)
        for reader in self._readers:
            reader.shift(self._base + index)

    def _divide(self, batch: events_pb2.TokenBatch, offset: int) -> tuple[bytes, bytes]:
        """Divides a batch at an absolute text offset. Token ids stay with the first half."""
        left = offset - batch.text_offset
        head, tail = list[str](), list[str]()
        for piece in batch.pieces:
            raw = piece.encode()
            try:
                parts = raw[: max(0, left)].decode(), raw[max(0, left) :].decode()
            except UnicodeDecodeError:
                raise self._out_of_window("the resume point lies within a character") from None
            head.extend(part for part in parts[:1] if part)
            tail.extend(part for part in parts[1:] if part)
            left -= len(raw)
        first = events_pb2.TokenBatch(
            attempt=batch.attempt,
            first_index=batch.first_index,
            text_offset=batch.text_offset,
            prefix_digest=batch.prefix_digest,
            pieces=head,
            token_ids=batch.token_ids,
        )
        known = self._text()
        second = events_pb2.TokenBatch(
            attempt=batch.attempt,
            first_index=batch.first_index + len(head),
            text_offset=offset,
            # Without the beginning of the text the digest is not known; 0 makes the reader refuse.
            prefix_digest=0 if known is None else prefix_digest(known[:offset]),
            pieces=tail,
        )
        return first.SerializeToString(), second.SerializeToString()

    def _out_of_window(self, why: str) -> RefusalError:
        oldest = self._items[0].text_offset if self._items else self.next_offset
        return RefusalError(
            Refusal(
                Reason.RESUME_WINDOW,
                f"{why}; the oldest offset held is {oldest}",
                metadata={"oldest_offset": str(oldest)},
            )
        )


class Reader:
    """A position in an output log."""

    __slots__ = ("_log", "_metrics_version", "_position", "changed", "done")

    def __init__(self, log: OutputLog, position: int) -> None:
        self._log = log
        self._position = position
        self._metrics_version = log.metrics_version
        self.changed = asyncio.Event()
        self.done = False

    def take(self) -> list[bytes]:
        """Returns what can be sent now, about `MESSAGE_BYTES`; sets `done` with the outcome.

        Raises:
            RefusalError: RESUME_WINDOW when the next item was evicted.
        """
        log = self._log
        self.changed.clear()
        entries: list[bytes] = []
        size = 0
        while size < MESSAGE_BYTES and (item := log.item(self._position)) is not None:
            entries.append(item.entry)
            size += len(item.entry)
            self._position += 1
        if size >= MESSAGE_BYTES:
            self.changed.set()
            return entries
        if log.complete and log.final is not None:
            if not self.done:
                entries.append(log.final)
            self.done = True
        elif log.metrics_version != self._metrics_version:
            self._metrics_version = log.metrics_version
            entries.append(log.metrics)
        return entries

    def shift(self, split_at: int) -> None:
        """Follows a split of the item at an absolute position into two."""
        if self._position > split_at:
            self._position += 1


def _end(item: Item) -> int:
    return item.text_offset + item.text_bytes


def _batch(entry: bytes) -> events_pb2.TokenBatch:
    return orchestrator_service_pb2.StreamTokensResponse.FromString(entry).events[0].tokens


def _pieces(entry: bytes) -> bytes:
    return "".join(_batch(entry).pieces).encode()
