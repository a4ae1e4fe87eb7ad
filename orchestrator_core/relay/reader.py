"""Readers that follow the output of a job: positions in its log. LO-301, LO-302."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.retelling import of_attempt, outcome_at

if TYPE_CHECKING:
    from orchestrator_core.relay.log import OutputLog

# Sending several events in one message is the main lever on cost per token; this bounds such a
# message.
MESSAGE_BYTES: Final = 64 * 1024


class Reader:
    """A position in an output log. `_offset` is how much text the reader has.

    `side` is what comes before all that the log holds, brought back for this reader alone. `acked`
    is how much of the text the reader will never ask for again; whoever reads sets it.
    """

    __slots__ = (
        "_attempt",
        "_log",
        "_metrics_version",
        "_offset",
        "_position",
        "_proof",
        "_told",
        "acked",
        "caught_up",
        "done",
        "side",
        "wake",
    )

    def __init__(
        self,
        log: "OutputLog",
        position: int,
        resume: events_pb2.ResumePoint,
        wake: Callable[[], None],
    ) -> None:
        self._log = log
        self._position = position
        self._offset = resume.text_offset
        # No event of an attempt up to this one is new to it; its digest is to be compared once.
        named = resume.attempt != 0 or resume.text_offset != 0
        self._attempt = resume.attempt if named else -1
        self._told = resume.attempt
        self._proof: int | None = resume.prefix_digest if named else None
        # Who comes late is told how the job is doing now, not only a second later.
        self._metrics_version = 0
        self.acked = 0
        self.caught_up = False
        self.done = False
        self.side: deque[Item] = deque()
        self.wake = wake

    def take(self) -> list[bytes]:
        """Returns what can be sent now, about `MESSAGE_BYTES`; sets `done` with the outcome.

        Raises:
            RefusalError: NOT_FOUND when the job was forgotten; RESUME_WINDOW when the next item was
            evicted or never came, or when text that came differs from what the reader has.
        """
        if self.done:
            return []
        if self.side:
            return self._take_side()
        entries: list[bytes] = []
        size = 0
        while size < MESSAGE_BYTES and (item := self.settle()) is not None:
            entries.append(item.entry)
            size += len(item.entry)
            self._pass(item)
        if size >= MESSAGE_BYTES:
            self.wake()
        elif last := self.take_last():
            entries.append(last)
        return entries

    @property
    def lacks(self) -> bool:
        """True while text that comes next was evicted and is not at its side."""
        log = self._log
        return self._offset < log.oldest_offset and not self.side and log.forgotten is None

    @property
    def fresh(self) -> bool:
        """True for a reader that has nothing yet, not even the `started` of an attempt."""
        return not self._offset and not self._told

    def _take_side(self) -> list[bytes]:
        """Returns what is at its side, about `MESSAGE_BYTES`. Raises as `take`."""
        entries: list[bytes] = []
        size = 0
        while size < MESSAGE_BYTES and (item := self._next_at_side()) is not None:
            entries.append(item.entry)
            size += len(item.entry)
            self._pass(item)
        # What follows in the log, or is still lacking, has no news of its own to wait for.
        self.wake()
        return entries

    def _next_at_side(self) -> Item | None:
        """What comes next of what is at its side; `_pass` takes it away. Raises as `take`."""
        side = self.side
        while side and side[0].text_bytes and side[0].end <= self._offset:
            side.popleft()
        if not side:
            return None
        item = side[0]
        if self._proof is not None:
            self._prove(item)
        return self._told_in_order(item)

    def _told_in_order(self, item: Item) -> Item:
        """What is said of an item: nobody is told of an earlier attempt after a later one.

        A later one that was not announced is announced first: that was at a place which this reader
        has passed long ago. What an earlier one made, the later has too: it is told as made by it.
        """
        told = self._told
        if not item.text_bytes or not told or item.attempt == told:
            return item
        if item.attempt > told:
            return self._log.announcement(item.attempt, self._offset)
        entry = of_attempt(told, item.entry)
        return Item(told, item.text_offset, item.text_bytes, None, entry, item.first_index)

    def take_items(self, bytes_max: int, offset_max: int) -> list[Item]:
        """Returns what comes next, in a run of events and then one of text.

        Ends after about `bytes_max`, and before text once the reader has `offset_max` bytes of it.
        `caught_up` says afterwards whether that was all there is. What is at its side comes first,
        and then nothing else: the reader may lack more. Raises as `take`.
        """
        items: list[Item] = []
        size, text, end, beside = 0, False, self._log.end, bool(self.side)
        while (item := self._next_at_side() if beside else self.settle()) is not None:
            begins = not item.text_bytes
            if size >= bytes_max or (text if begins else self._offset >= offset_max):
                self.caught_up = False
                return items
            text = not begins
            items.append(item)
            size += len(item.entry)
            self._pass(item)
            if self._position == end and not beside:
                break
        self.caught_up = not beside
        return items

    def take_last(self) -> bytes:
        """For a reader that has caught up: the outcome, which sets `done`, else new metrics.

        Raises as `take`.
        """
        log = self._log
        if log.complete and log.final is not None:
            ahead = self._offset > log.next_offset
            if ahead and not log.unmeasured:
                raise log.out_of_window("the resume point lies beyond the output")
            self.done = True
            return outcome_at(log.final, self._offset) if ahead else log.final
        if log.final is not None and log.ends_at(self._offset, self._proof):
            self.done = True
            return log.final
        if log.metrics_version == self._metrics_version:
            return b""
        self._metrics_version = log.metrics_version
        return log.metrics

    @property
    def offset(self) -> int:
        """UTF-8 bytes of text that the reader has."""
        return self._offset

    def settle(self) -> Item | None:
        """Skips what the reader has; returns the item that comes next, None while there is none.

        Raises:
            RefusalError: as `take`.
        """
        log = self._log
        if log.forgotten is not None:
            raise RefusalError(log.forgotten)
        self._position, item = log.next_after(self._position, self._offset, self._attempt)
        if self._proof is not None and log.next_offset >= self._offset:
            self._prove(item)
        if item is not None and item.text_offset > self._offset:
            raise log.out_of_window("output before the next batch was lost")
        if not (self._told or self._offset) and (item is None or item.text_bytes):
            # The `started` may have been evicted before there was any text, and a host that sends
            # again from the beginning can bring text back alone.
            begun = log.beginning()
            if begun is not None and begun.attempt:
                return begun
        return None if item is None else self._told_in_order(item)

    def _pass(self, item: Item) -> None:
        self._told = max(self._told, item.attempt)
        if self.side and item is self.side[0]:
            self.side.popleft()
        elif item is self._log.item(self._position):
            self._position += 1
        if item.text_bytes:
            self._offset = item.end
            self._attempt = self._told

    def _prove(self, item: Item | None) -> None:
        """Compares digests. Where the log knows none there, the reader's own check remains.

        The digest of the next batch covers what the reader has, so it finds what is not found here.
        """
        at_item = item is not None and item.text_offset == self._offset
        known = item.prefix_digest if item and at_item else None
        if known is None and self._log.next_offset == self._offset:
            known = self._log.digest()
        if known is None:
            known = self._log.digest_within(self._offset)
        if known is not None and known != self._proof:
            raise self._log.out_of_window("the digest of the text before the resume point differs")
        self._proof = None
