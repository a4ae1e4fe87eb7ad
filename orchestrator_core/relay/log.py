"""The output of one job, as far as it is kept here.

Items are encoded events, ready to be sent. A chunk of text is sent as it came: it is read once, for
the running digest, and never cut. So a reader that goes on within a chunk, or follows a replay that
is cut elsewhere, gets some text again and trims it by its offset.

A reader is only a position, so a slow or absent one costs no memory: what it has not read is
evicted under the cap like anything else, and it is then told RESUME_WINDOW. LO-301, LO-302.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import attrgetter

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay import chunks
from orchestrator_core.relay.announced import Announced
from orchestrator_core.relay.digests import RunningDigest, digest_within
from orchestrator_core.relay.items import ITEM_BYTES, Frame, Item, text_item
from orchestrator_core.relay.marks import Marks
from orchestrator_core.relay.reader import Reader

BEGINNING = events_pb2.ResumePoint()


class OutputLog:
    """Events of one job in order; entries beyond `bytes_max` are evicted, oldest first.

    `attempt` is the only attempt whose text is taken, 0 while there is none. `oldest_offset` is the
    first place from which all text up to `next_offset` is held. A `doubtful` log may lack the end
    of what readers have: it was begun anew after a restart. A `sealed` one takes no more text of
    its attempt: the job ended with what is here. `end` is the absolute position after the last
    item. `output_bytes` is the length of all entries. `listed` belongs to the relay.
    """

    __slots__ = (
        "_announced",
        "_base",
        "_bytes_max",
        "_digest",
        "_expected",
        "_expected_digest",
        "_items",
        "_marks",
        "_readers",
        "attempt",
        "doubtful",
        "end",
        "final",
        "forgotten",
        "listed",
        "metrics",
        "metrics_version",
        "next_index",
        "next_offset",
        "oldest_offset",
        "output_bytes",
        "sealed",
    )

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._items: list[Item] = []
        self._base = 0
        self.end = 0
        self._readers: list[Reader] = []
        self._digest: RunningDigest | None = RunningDigest()
        self._expected: int | None = None
        self._expected_digest: int | None = None
        self._announced = Announced()
        self._marks = Marks()
        self.attempt = 0
        self.doubtful = False
        self.listed = False
        self.sealed = False
        self.next_index = 0
        self.next_offset = 0
        self.oldest_offset = 0
        self.output_bytes = 0
        self.final: bytes | None = None
        self.forgotten: Refusal | None = None
        self.metrics: bytes = b""
        self.metrics_version = 0

    @property
    def bytes_held(self) -> int:
        """Memory that the items take, with what they cost beside their entries."""
        return self.output_bytes + len(self._items) * ITEM_BYTES

    # --- writing

    def begin_attempt(self, attempt: int) -> None:
        """Takes text of this attempt from now on, and of no other. LO-304.

        Never of an earlier one again: that is adopted only to prove what was delivered, maybe after
        the attempt that replaces it was sent.
        """
        if attempt > self.attempt:
            self.attempt = attempt
            self.next_index = 0
            self.sealed = False
            self._marks.clear()

    def append_text(self, frame: Frame, *, accept_gap: bool = False) -> bool | None:
        """Takes a frame. True: taken; False: known already, or of another attempt.

        None: it lies ahead of what is here. With `accept_gap` it is taken all the same: what is
        before it is gone for good, and so is the digest.

        Raises:
            MalformedOutputError: the chunk is not what the frame says; nothing was taken.
        """
        over = self.final is not None and self.complete
        if frame.attempt != self.attempt or self.sealed or over:
            return False
        known = self.next_offset - frame.text_offset
        if known < 0 and not accept_gap:
            return None
        if frame.text_bytes <= known:
            self.next_index = max(self.next_index, frame.first_index + frame.pieces)
            return False
        text = chunks.read(frame.chunk, frame.text_offset, frame.text_bytes, frame.pieces)
        if self._expected is not None and frame.text_offset + frame.text_bytes > self._expected:
            # A host may hold more than the job ended with.
            batch = chunks.cut(chunks.parse(frame.chunk), self._expected)
            text = chunks.text_of(batch)
            frame = frame.with_chunk(batch.SerializeToString(), len(batch.pieces), len(text))
        if known < 0:
            self._jump(frame)
        elif self._digest is not None:
            self._digest.add(text[known:] if known else text)
        self.next_index = max(self.next_index, frame.first_index + frame.pieces)
        self.next_offset = frame.text_offset + frame.text_bytes
        self._append(text_item(frame))
        return True

    def told_all(self, text_bytes: int) -> None:
        """Notes that the attempt ended after so much text: what is here is all that there was.

        A replay that ended before it told any says nothing of what was delivered before it.
        """
        if 0 < text_bytes <= self.next_offset:
            self.doubtful = False

    def append_event(self, entry: bytes) -> None:
        """Adds an event other than text, at the present place of the output: of a new attempt."""
        self._announced.tell(self.attempt, entry)
        self._append(Item(self.attempt, self.next_offset, 0, self.digest(), entry))

    def set_metrics(self, entry: bytes) -> None:
        """Replaces the metrics event; readers get the latest one only."""
        self.metrics = entry
        self.metrics_version += 1
        self.wake()

    def finish(self, entry: bytes, text_bytes: int | None, text_digest: int | None = None) -> None:
        """Sets the outcome. It is sent after `text_bytes` of output; None: whatever there is.

        Who proves by `text_digest` to have all of that text is told the outcome in any case.
        """
        if self.final is None:
            self.final = entry
            self._expected, self._expected_digest = text_bytes, text_digest
            self.wake()

    def wake(self) -> None:
        """Lets readers look again, also for something that is not in the log."""
        for reader in self._readers:
            reader.wake()

    def drop_acknowledged(self) -> int:
        """Drops what all present readers have acknowledged; returns the bytes freed.

        A reader that acknowledges nothing, as one that follows this job alone, keeps everything.
        """
        if not self._readers:
            return 0
        offset = min(reader.acked for reader in self._readers)
        count = 0
        for item in self._items:
            if item.end > offset or (not item.text_bytes and item.text_offset == offset):
                break
            count += 1
        held = self.bytes_held
        self._drop(count)
        return held - self.bytes_held

    def evict_all(self) -> int:
        """Drops all items; returns the bytes freed. Readers behind are told RESUME_WINDOW."""
        self._mark()
        freed = self.bytes_held
        self._base += len(self._items)
        self._items = []
        self.output_bytes = 0
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
        self._digest = None
        self.evict_all()

    def _append(self, item: Item) -> None:
        self._items.append(item)
        self.end += 1
        self.output_bytes += len(item.entry)
        if self.output_bytes > self._bytes_max:
            self._evict()
        for reader in self._readers:
            reader.wake()

    def _evict(self) -> None:
        """Drops the oldest items down to three quarters of the cap: cheap on average."""
        count = freed = 0
        least = self.output_bytes - self._bytes_max * 3 // 4
        while freed < least and count < len(self._items) - 1:
            freed += len(self._items[count].entry)
            count += 1
        self._drop(count)

    def _mark(self) -> None:
        """Notes where the oldest text lies before it is dropped."""
        for item in self._items:
            if item.text_bytes:
                if item.attempt == self.attempt:
                    self._marks.add(item.text_offset, item.first_index)
                return

    def _drop(self, count: int) -> None:
        """Drops the oldest items. An event stays with the text after it, for who begins there."""
        items = self._items
        while 0 < count < len(items) and items[count - 1].leads(items[count]):
            count -= 1
        if count:
            self._mark()
            self.output_bytes -= sum(len(item.entry) for item in items[:count])
            del items[:count]
            self._base += count
            self.oldest_offset = items[0].text_offset if items else self.next_offset

    # --- reading

    @property
    def complete(self) -> bool:
        """True when no more text may come: the outcome and all text before it are here."""
        return self.final is not None and self.next_offset >= (self._expected or 0)

    def ends_at(self, text_offset: int, proof: int | None) -> bool:
        """True when a reader with that much text, and the digest of it, lacks only the outcome."""
        known = self.final is not None and self._expected_digest is not None
        return known and (text_offset, proof) == (self._expected, self._expected_digest)

    @property
    def followed(self) -> bool:
        """True while somebody reads."""
        return bool(self._readers)

    @property
    def unmeasured(self) -> bool:
        """True for the outcome of a job that did not finish, where a restart came before it.

        How much text there was nobody knows: some of it may have come back, or nothing.
        """
        unknown = self.doubtful or not self.next_offset
        return self.final is not None and self._expected is None and unknown

    def announced(self, attempt: int) -> bool:
        """True when the log has the event that announces the attempt."""
        return self._announced.attempt == attempt

    def beginning(self) -> Item | None:
        """What a reader that has nothing at all is told before the first text, as `Announced`."""
        return self._announced.beginning()

    def index_before(self, text_offset: int) -> int:
        """A piece of the present attempt that lies at or before a place that was evicted."""
        return self._marks.index_before(text_offset)

    def announcement(self, attempt: int, text_offset: int) -> Item:
        """The `resumed` of an attempt for a reader that missed it."""
        return self._announced.again(attempt, text_offset)

    def open(
        self,
        resume: events_pb2.ResumePoint | None,
        wake: Callable[[], None] = lambda: None,
        *,
        late: bool = False,
    ) -> Reader:
        """Opens a reader at the beginning or at a resume point; `wake` is called at each change.

        A point beyond the output is fine while text can still come: the reader waits for it. With
        `late` it may lie before what is held: the reader then `lacks` text until it is given some.

        Raises:
            RefusalError: RESUME_WINDOW, naming the oldest offset held, when the point is not held
            any more, lies beyond the end, or its digest differs from what is held.
        """
        point = BEGINNING if resume is None else resume
        offset = point.text_offset
        lacks = offset < self.oldest_offset
        if lacks and not late:
            raise self.out_of_window("the resume point is no longer held")
        if offset > self.next_offset and self.complete and not self.unmeasured:
            raise self.out_of_window("the resume point lies beyond the output")
        index = bisect_left(self._items, offset, key=attrgetter("end"))
        reader = Reader(self, self._base + index, point, wake)
        if not lacks:
            reader.settle()
        self._readers.append(reader)
        return reader

    def close(self, reader: Reader) -> None:
        """Forgets a reader."""
        if reader in self._readers:
            self._readers.remove(reader)

    def digest(self) -> int | None:
        """Digest of all text so far: first eight bytes, big-endian, of its SHA-256.

        None when there was a gap: the text before it was never seen here.
        """
        return None if self._digest is None else self._digest.value()

    def digest_within(self, text_offset: int) -> int | None:
        """Digest of the text before a place inside a chunk; None unless all of it is held.

        O(text): chunks are kept encoded. Only a reader that comes back at such a place asks.
        """
        if self._digest is None or self.oldest_offset or text_offset > self.next_offset:
            return None
        return digest_within(self._items, text_offset)

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

    def items(self) -> Iterator[Item]:
        """What is held, oldest first."""
        return iter(self._items)

    def item(self, position: int) -> Item | None:
        """Item at an absolute position; None when there is none yet, or none any more."""
        index = position - self._base
        return self._items[index] if 0 <= index < len(self._items) else None

    def next_after(self, position: int, offset: int, attempt: int) -> tuple[int, Item | None]:
        """First item at or after a position that a reader lacks, and its position.

        The reader has the text up to `offset`, and there the events of attempts up to `attempt`.
        One call for what a reader asks for every batch of tokens.

        Raises:
            RefusalError: as `position`.
        """
        if position < self._base:
            position = self.position(position, offset)
        items = self._items
        for index in range(position - self._base, len(items)):
            item = items[index]
            ahead = item.text_offset - offset
            if (
                ahead + item.text_bytes > 0
                if item.text_bytes
                else ahead > 0 or (ahead == 0 and item.attempt > attempt)
            ):
                return self._base + index, item
        return max(position, self._base + len(items)), None

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
