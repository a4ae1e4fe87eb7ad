"""The output of one job, as far as it is kept here, and readers that follow it.

Items are encoded events, ready to be sent. A chunk of text is sent as it came: it is read once, for
the running digest, and never cut. So a reader that goes on within a chunk, or follows a replay that
is cut elsewhere, gets some text again and trims it by its offset.

A reader is only a position, so a slow or absent one costs no memory: what it has not read is
evicted under the cap like anything else, and it is then told RESUME_WINDOW. LO-301, LO-302.
"""

import asyncio
import hashlib
from bisect import bisect_left
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.retelling import outcome_at, resumed_at
from orchestrator_core.wire.frames import encode_token_event

# Sending several events in one message is the main lever on cost per token; this bounds such a
# message.
MESSAGE_BYTES = 64 * 1024
BEGINNING = events_pb2.ResumePoint()


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
    """One encoded event. `text_bytes` is 0 for events other than text.

    `prefix_digest` is the digest of all text before the item, None where it is not known.
    """

    attempt: int
    text_offset: int
    text_bytes: int
    prefix_digest: int | None
    entry: bytes


class OutputLog:
    """Events of one job in order; text beyond `bytes_max` is evicted, oldest first.

    `attempt` is the only attempt whose text is taken, 0 while there is none. `oldest_offset` is the
    first place from which all text up to `next_offset` is held.
    """

    __slots__ = (
        "_announced",
        "_base",
        "_bytes_max",
        "_expected",
        "_hash",
        "_items",
        "_readers",
        "attempt",
        "bytes_held",
        "final",
        "forgotten",
        "metrics",
        "metrics_version",
        "next_index",
        "next_offset",
        "oldest_offset",
    )

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._items: list[Item] = []
        self._base = 0
        self._readers: set[Reader] = set()
        self._hash: hashlib._Hash | None = hashlib.sha256()
        self._expected: int | None = None
        self._announced = (0, b"")
        self.attempt = 0
        self.next_index = 0
        self.next_offset = 0
        self.oldest_offset = 0
        self.bytes_held = 0
        self.final: bytes | None = None
        self.forgotten: Refusal | None = None
        self.metrics: bytes = b""
        self.metrics_version = 0

    # --- writing

    def begin_attempt(self, attempt: int) -> None:
        """Takes text of this attempt from now on, and of no other. LO-304."""
        if attempt != self.attempt:
            self.attempt = attempt
            self.next_index = 0

    def append_text(self, frame: Frame, *, accept_gap: bool = False) -> bool | None:
        """Takes a frame. True: taken; False: known already, of another attempt or malformed.

        None: it lies ahead of what is here. With `accept_gap` it is taken all the same: what is
        before it is gone for good, and so is the digest.
        """
        if frame.attempt != self.attempt or self.complete:
            return False
        if frame.text_offset > self.next_offset and not accept_gap:
            return None
        if frame.text_offset + frame.text_bytes <= self.next_offset:
            self.next_index = max(self.next_index, frame.first_index + frame.pieces)
            return False
        batch, text = _parse(frame)
        if batch is None:
            return False
        if frame.text_offset > self.next_offset:
            self._jump(frame)
        self._take(frame, text, batch.prefix_digest)
        return True

    def append_event(self, entry: bytes) -> None:
        """Adds an event other than text, at the present place of the output: of a new attempt."""
        self._announced = (self.attempt, entry)
        self._append(Item(self.attempt, self.next_offset, 0, self.digest(), entry))

    def set_metrics(self, entry: bytes) -> None:
        """Replaces the metrics event; readers get the latest one only."""
        self.metrics = entry
        self.metrics_version += 1
        self.wake()

    def finish(self, entry: bytes, text_bytes: int | None) -> None:
        """Sets the outcome. It is sent after `text_bytes` of output; None: whatever there is."""
        if self.final is None:
            self.final = entry
            self._expected = text_bytes
            self.wake()

    def expect(self, text_bytes: int, entry: bytes | None = None) -> None:
        """Puts the outcome behind `text_bytes` of output that a host still holds.

        For an outcome told without its text, as after a restart. More text is taken until all is
        here. `entry` replaces the outcome, which names the length and digest of the text. Nothing
        happens while there is no outcome, or when it comes that late or later already.
        """
        if self.final is not None and text_bytes > (self._expected or 0):
            self._expected = text_bytes
            self.final = entry or self.final
            self.wake()

    def wake(self) -> None:
        """Lets readers look again, also for something that is not in the log."""
        for reader in self._readers:
            reader.changed.set()

    def evict_all(self) -> int:
        """Drops all items; returns the bytes freed. Readers behind are told RESUME_WINDOW."""
        freed = self.bytes_held
        self._base += len(self._items)
        self._items = []
        self.bytes_held = 0
        self.oldest_offset = self.next_offset
        self.wake()
        return freed

    def forget(self, why: Refusal) -> int:
        """Drops everything; returns the bytes freed. Readers are told `why`."""
        self.forgotten = why
        return self.evict_all()

    def _jump(self, frame: Frame) -> None:
        """Accepts that what lies before a frame will not come."""
        self.next_offset = frame.text_offset
        self.next_index = frame.first_index
        self._hash = None
        self.evict_all()

    def _take(self, frame: Frame, text: bytes, prefix_digest: int) -> None:
        if self._hash is not None:
            self._hash.update(text[self.next_offset - frame.text_offset :])
        self.next_index = max(self.next_index, frame.first_index + frame.pieces)
        self.next_offset = frame.text_offset + frame.text_bytes
        entry = encode_token_event(frame.chunk)
        self._append(Item(frame.attempt, frame.text_offset, frame.text_bytes, prefix_digest, entry))

    def _append(self, item: Item) -> None:
        self._items.append(item)
        self.bytes_held += len(item.entry)
        if self.bytes_held > self._bytes_max:
            self._evict()
        self.wake()

    def _evict(self) -> None:
        """Drops the oldest items down to three quarters of the cap: cheap on average."""
        count = 0
        while self.bytes_held > self._bytes_max * 3 // 4 and count < len(self._items) - 1:
            self.bytes_held -= len(self._items[count].entry)
            count += 1
        if count:
            del self._items[:count]
            self._base += count
            self.oldest_offset = self._items[0].text_offset

    # --- reading

    @property
    def complete(self) -> bool:
        """True when no more text may come: the outcome and all text before it are here."""
        return self.final is not None and self.next_offset >= (self._expected or 0)

    @property
    def textless(self) -> bool:
        """True for the outcome of a job that did not finish, told again after a restart.

        What text there was nobody knows.
        """
        return self.final is not None and self._expected is None and not self.next_offset

    def announced(self, attempt: int) -> bool:
        """True when the log has the event that announces the attempt."""
        return self._announced[0] == attempt

    def announcement(self, attempt: int, text_offset: int) -> Item:
        """The `resumed` of an attempt for a reader that missed it."""
        known, entry = self._announced
        told = resumed_at(attempt, entry if known == attempt else b"", text_offset)
        return Item(attempt, text_offset, 0, None, told)

    def open(self, resume: events_pb2.ResumePoint | None) -> "Reader":
        """Opens a reader at the beginning or at a resume point.

        A point beyond the output is fine while text can still come: the reader waits for it.

        Raises:
            RefusalError: RESUME_WINDOW, naming the oldest offset held, when the point is not held
            any more, lies beyond the end, or its digest differs from what is held.
        """
        point = BEGINNING if resume is None else resume
        offset = point.text_offset
        if offset < self.oldest_offset:
            raise self.out_of_window("the resume point is no longer held")
        if offset > self.next_offset and self.complete and not self.textless:
            raise self.out_of_window("the resume point lies beyond the output")
        index = bisect_left(self._items, offset, key=_end)
        reader = Reader(self, self._base + index, point)
        reader.settle()
        self._readers.add(reader)
        return reader

    def close(self, reader: "Reader") -> None:
        """Forgets a reader."""
        self._readers.discard(reader)

    def digest(self) -> int | None:
        """Digest of all text so far: first eight bytes, big-endian, of its SHA-256.

        None when there was a gap: the text before it was never seen here.
        """
        return None if self._hash is None else int.from_bytes(self._hash.digest()[:8], "big")

    def position(self, position: int, text_offset: int) -> int:
        """Absolute position where a reader goes on that has the text up to an offset.

        Raises:
            RefusalError: RESUME_WINDOW when text that it lacks was evicted.
        """
        if position >= self._base:
            return position
        if text_offset < self.oldest_offset:
            raise self.out_of_window("the reader fell behind what is held")
        return self._base

    def item(self, position: int) -> Item | None:
        """Item at an absolute position that is held; None when there is none yet."""
        index = position - self._base
        return self._items[index] if index < len(self._items) else None

    def out_of_window(self, why: str) -> RefusalError:
        """RESUME_WINDOW, naming the oldest offset held."""
        oldest = self.oldest_offset
        return RefusalError(
            Refusal(
                Reason.RESUME_WINDOW,
                f"{why}; the oldest offset held is {oldest}",
                metadata={"oldest_offset": str(oldest)},
            )
        )


class Reader:
    """A position in an output log. `_offset` is how much text the reader has."""

    __slots__ = (
        "_attempt",
        "_log",
        "_metrics_version",
        "_offset",
        "_position",
        "_proof",
        "_told",
        "changed",
        "done",
    )

    def __init__(self, log: OutputLog, position: int, resume: events_pb2.ResumePoint) -> None:
        self._log = log
        self._position = position
        self._offset = resume.text_offset
        # What the reader knows of the place where it begins: until text follows, no event of this
        # attempt is new to it, and the digest is to be compared once.
        named = resume.attempt != 0 or resume.text_offset != 0
        self._attempt = resume.attempt if named else -1
        self._told = resume.attempt
        self._proof: int | None = resume.prefix_digest if named else None
        self._metrics_version = log.metrics_version
        self.changed = asyncio.Event()
        self.done = False

    def take(self) -> list[bytes]:
        """Returns what can be sent now, about `MESSAGE_BYTES`; sets `done` with the outcome.

        Raises:
            RefusalError: NOT_FOUND when the job was forgotten; RESUME_WINDOW when the next item was
            evicted or never came, or when text that came differs from what the reader has.
        """
        log = self._log
        self.changed.clear()
        if self.done:
            return []
        entries: list[bytes] = []
        size = 0
        while size < MESSAGE_BYTES and (item := self.settle()) is not None:
            entries.append(item.entry)
            size += len(item.entry)
            self._pass(item)
        if size >= MESSAGE_BYTES:
            self.changed.set()
        elif log.complete and log.final is not None:
            ahead = self._offset > log.next_offset
            if ahead and not log.textless:
                raise log.out_of_window("the resume point lies beyond the output")
            entries.append(outcome_at(log.final, self._offset) if ahead else log.final)
            self.done = True
        elif log.metrics_version != self._metrics_version:
            self._metrics_version = log.metrics_version
            entries.append(log.metrics)
        return entries

    def settle(self) -> Item | None:
        """Skips what the reader has; returns the item that comes next, None while there is none.

        Raises:
            RefusalError: as `take`.
        """
        log = self._log
        if log.forgotten is not None:
            raise RefusalError(log.forgotten)
        self._position = log.position(self._position, self._offset)
        while (item := log.item(self._position)) is not None and self._has(item):
            self._position += 1
        if self._proof is not None and log.next_offset >= self._offset:
            self._prove(item)
        if item is not None and item.text_offset > self._offset:
            raise log.out_of_window("output before the next batch was lost")
        if item is not None and item.text_bytes and 0 < self._told < item.attempt:
            # It was announced at a place that this reader has passed long ago.
            return log.announcement(item.attempt, self._offset)
        return item

    def _has(self, item: Item) -> bool:
        if item.text_bytes:
            return _end(item) <= self._offset
        here = item.text_offset == self._offset and item.attempt <= self._attempt
        return here or item.text_offset < self._offset

    def _pass(self, item: Item) -> None:
        self._told = max(self._told, item.attempt)
        if item is self._log.item(self._position):
            self._position += 1
        if item.text_bytes:
            self._offset = _end(item)
            self._attempt = -1

    def _prove(self, item: Item | None) -> None:
        """Compares digests where a chunk begins or the text ends; elsewhere the reader's own check.

        The digest of the next batch covers what the reader has, so it finds what is not found here.
        """
        at_item = item is not None and item.text_offset == self._offset
        known = item.prefix_digest if item and at_item else None
        if known is None and self._log.next_offset == self._offset:
            known = self._log.digest()
        if known is not None and known != self._proof:
            raise self._log.out_of_window("the digest of the text before the resume point differs")
        self._proof = None


def _end(item: Item) -> int:
    return item.text_offset + item.text_bytes


def _parse(frame: Frame) -> tuple[events_pb2.TokenBatch | None, bytes]:
    """The batch in a frame and its text; None when it is not what the frame says."""
    try:
        batch = events_pb2.TokenBatch.FromString(frame.chunk)
    except DecodeError:
        return None, b""
    text = "".join(batch.pieces).encode()
    fits = batch.text_offset == frame.text_offset and len(text) == frame.text_bytes
    return (batch if fits else None), text
