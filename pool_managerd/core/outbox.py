"""What one Dispatch stream still has to send: cursors, windows and the next frame.

One outbox lives as long as one stream. It reads the logs and never copies output: a disconnected
stream loses its outbox and nothing else. LO-301, LO-302.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from pool_managerd.core.attempts import AttemptFailure, AttemptLog, Chunk

ENDED_BYTES = 128
"""Charged for the end of an attempt beside its words."""

CHARACTER_BYTES_MAX = 4


class RefusalReason(enum.Enum):
    """Why an attempt was not started."""

    NO_SLOT = "no_slot"
    UNKNOWN_REPLICA = "unknown_replica"
    NOT_READY = "not_ready"
    STORE_FULL = "store_full"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Refused:
    """One attempt that was not started."""

    handle: int
    reason: RefusalReason
    message: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Content of one HostFrame, in the order in which it is processed."""

    refused: tuple[Refused, ...]
    started: tuple[tuple[int, bool], ...]
    chunks: tuple[tuple[int, AttemptLog, Chunk], ...]
    ended: tuple[tuple[int, AttemptLog], ...]


@dataclass(slots=True)
class _Cursor:
    log: AttemptLog
    next_index: int
    sent_offset: int
    acked_offset: int
    new_only: bool
    started_sent: bool = False
    ended_sent: bool = False


class Outbox:
    """Cursors of all attempts bound to one stream.

    `window_bytes` bounds the output of one attempt that is under way unacknowledged, `frame_bytes`
    the size of one frame. `wake` is called when something became sendable.
    """

    def __init__(self, window_bytes: int, frame_bytes: int, wake: Callable[[], None]) -> None:
        if window_bytes <= 0 or frame_bytes <= 0:
            raise ValueError("the send window and the frame are bounded by positive limits")
        self._window_bytes = window_bytes
        self._frame_bytes = frame_bytes
        self._wake = wake
        self._cursors: dict[int, _Cursor] = {}
        self._handles: dict[AttemptLog, int] = {}
        self._dirty: dict[int, None] = {}
        self._refused: list[Refused] = []

    @property
    def pending(self) -> bool:
        """True when `take` may return a frame."""
        return bool(self._dirty or self._refused)

    @property
    def drained(self) -> bool:
        """True when the end of every bound attempt was sent: one that lets go is waited for."""
        return not self.pending and all(cursor.ended_sent for cursor in self._cursors.values())

    @property
    def unacked_bytes(self) -> int:
        """Output that was sent and not acknowledged yet. O(bound attempts)."""
        return sum(max(0, c.sent_offset - c.acked_offset) for c in self._cursors.values())

    def log_of(self, handle: int) -> AttemptLog | None:
        """The log bound to `handle`, or None."""
        cursor = self._cursors.get(handle)
        return cursor.log if cursor else None

    def bind(self, handle: int, log: AttemptLog, first_index: int | None = None) -> None:
        """Binds `log` to `handle`, sending from `first_index` on, or by default what is new.

        An earlier handle of the log is void.
        """
        self.unbind(self._handles.get(log, -1))
        self.unbind(handle)
        new_only = first_index is None
        index = max(first_index or 0, log.new_from if new_only else log.first_index)
        offset = log.offset_of(index)
        self._cursors[handle] = _Cursor(log, index, offset, offset, new_only)
        self._handles[log] = handle
        self._touch(handle)

    def unbind(self, handle: int) -> None:
        """Forgets `handle`; without effect when it is not bound."""
        cursor = self._cursors.pop(handle, None)
        self._dirty.pop(handle, None)
        if cursor is not None:
            self._handles.pop(cursor.log, None)
            # It may be the last one whose end was waited for.
            self._wake()

    def refuse(self, refused: Refused) -> None:
        """Sends a refusal with the next frame."""
        self._refused.append(refused)
        self._wake()

    def touch(self, log: AttemptLog) -> None:
        """Notes that `log` started, grew or ended; without effect when it is not bound here."""
        handle = self._handles.get(log)
        # What is pending already was told before, and is read when its frame is made.
        if handle is not None and handle not in self._dirty:
            self._touch(handle)

    def ack(self, handle: int, text_offset: int) -> None:
        """Opens the window of `handle`: the reader has `text_offset` bytes."""
        cursor = self._cursors.get(handle)
        if cursor is None:
            return
        cursor.log.ack(text_offset)
        cursor.acked_offset = max(cursor.acked_offset, text_offset)
        self._touch(handle)

    def seek(self, handle: int, first_index: int) -> None:
        """Sends the output of `handle` again from `first_index` on, or from what is still held."""
        cursor = self._cursors.get(handle)
        if cursor is None:
            return
        cursor.next_index = max(first_index, cursor.log.first_index)
        cursor.new_only = False
        cursor.sent_offset = cursor.acked_offset = cursor.log.offset_of(cursor.next_index)
        self._touch(handle)

    def take(self) -> Frame | None:
        """The next frame, or None when nothing can be sent now. Handles take turns."""
        budget = self._frame_bytes
        started: list[tuple[int, bool]] = []
        chunks: list[tuple[int, AttemptLog, Chunk]] = []
        ended: list[tuple[int, AttemptLog]] = []
        for handle in tuple(self._dirty):
            if budget <= 0:
                break
            cursor = self._cursors[handle]
            del self._dirty[handle]
            log = cursor.log
            if log.started and not cursor.started_sent:
                cursor.started_sent = True
                started.append((handle, log.kv_warmth))
            chunk = self._next_chunk(cursor, budget)
            if chunk is not None:
                chunks.append((handle, log, chunk))
                budget -= chunk.cost_bytes
            if log.terminal is not None and self._may_end(cursor):
                cursor.ended_sent = True
                ended.append((handle, log))
                budget -= _ended_bytes(log)
            elif cursor.next_index < log.next_index and chunk and self._sendable(cursor):
                self._dirty[handle] = None
        frame = Frame(tuple(self._refused), tuple(started), tuple(chunks), tuple(ended))
        self._refused.clear()
        return frame if frame.refused or started or chunks or ended else None

    def _touch(self, handle: int) -> None:
        if handle not in self._dirty and self._sendable(self._cursors[handle]):
            self._dirty[handle] = None
            self._wake()

    def _sendable(self, cursor: _Cursor) -> bool:
        log = cursor.log
        if log.started and not cursor.started_sent:
            return True
        if log.terminal is not None and self._may_end(cursor):
            return True
        self._snap(cursor)
        more = log.visible and cursor.next_index < log.next_index
        return more and cursor.sent_offset - cursor.acked_offset < self._window_bytes

    @staticmethod
    def _snap(cursor: _Cursor) -> None:
        # What a replay repeats, or a cap evicted, is not sent and does not count as under way.
        log = cursor.log
        lowest = log.new_from if cursor.new_only else log.first_index
        if cursor.next_index < lowest:
            cursor.next_index = lowest
            cursor.sent_offset = cursor.acked_offset = log.offset_of(lowest)

    def _room(self, cursor: _Cursor) -> int:
        in_flight = max(0, cursor.sent_offset - cursor.acked_offset)
        return self._window_bytes - in_flight

    @staticmethod
    def _may_end(cursor: _Cursor) -> bool:
        log = cursor.log
        if log.terminal is None or cursor.ended_sent:
            return False
        return not log.visible or cursor.next_index >= log.next_index

    def _next_chunk(self, cursor: _Cursor, budget: int) -> Chunk | None:
        self._snap(cursor)
        room = self._room(cursor)
        if room <= 0:
            return None
        chunk = cursor.log.read_from(cursor.next_index, room, budget)
        # One piece may exceed what is left of the window; it goes alone, once nothing is under way.
        if chunk is None or (chunk.text_bytes > room and room < self._window_bytes):
            return None
        cursor.next_index = chunk.first_index + len(chunk.pieces)
        cursor.sent_offset = chunk.text_offset + chunk.text_bytes
        return chunk


def _ended_bytes(log: AttemptLog) -> int:
    """At least what the end of an attempt takes on the wire."""
    outcome = log.terminal.outcome if log.terminal is not None else None
    words = len(outcome.message) if isinstance(outcome, AttemptFailure) else 0
    return ENDED_BYTES + CHARACTER_BYTES_MAX * words
