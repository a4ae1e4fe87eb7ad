"""Deadlines of the core: a heap whose stale entries are skipped."""

import enum
import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass, field


class TimerKind(enum.IntEnum):
    """What a deadline is about; the key is the id of a job, host, pool or model."""

    JOB_DEADLINE = 1
    QUEUE_TIMEOUT = 2
    WALL = 3
    IDLE = 4
    DISCONNECT = 5
    REATTACH = 6
    POOL_REOPENS = 7
    FORGET = 8
    POOL_STALE = 9
    DECLINE = 10
    CANCEL = 11
    SESSION = 12
    HOST = 13
    MODEL_GRACE = 14

    # That of an enum's name is computed in Python each time; kinds are in the key of every timer.
    __hash__ = int.__hash__


@dataclass(slots=True, eq=False, repr=False)
class Timers:
    """One deadline per (kind, key). set, clear: O(log n); due deadlines come in order of time."""

    _due: dict[tuple[TimerKind, str], int] = field(default_factory=dict)
    _heap: list[tuple[int, TimerKind, str]] = field(default_factory=list)

    def set(self, kind: TimerKind, key: str, at_ms: int) -> None:
        """Sets or moves a deadline."""
        due, heap, name = self._due, self._heap, (kind, key)
        if due.get(name) != at_ms:
            due[name] = at_ms
            heapq.heappush(heap, (at_ms, kind, key))
            if len(heap) > 4 * len(due) + 64:
                self._heap = self.sorted_heap()

    def sorted_heap(self) -> list[tuple[int, TimerKind, str]]:
        """A heap of the deadlines that are set, without stale entries. O(n log n)."""
        return sorted((at, kind, key) for (kind, key), at in self._due.items())

    def set_by(self, kind: TimerKind, key: str, at_ms: int) -> None:
        """Sets a deadline unless there is one that is not later: for what looks again when due."""
        present_ms = self._due.get((kind, key))
        if present_ms is None or present_ms > at_ms:
            self.set(kind, key, at_ms)

    def is_set(self, kind: TimerKind, key: str) -> bool:
        """True when there is a deadline."""
        return (kind, key) in self._due

    def postpone(self, kinds: Container[TimerKind], by_ms: int) -> None:
        """Moves every deadline of these kinds. O(deadlines)."""
        for kind, key in [entry for entry in self._due if entry[0] in kinds]:
            self.set(kind, key, self._due[(kind, key)] + by_ms)

    def move(self, kind: TimerKind, key: str, by_ms: int) -> None:
        """Moves a deadline, if there is one."""
        present_ms = self._due.get((kind, key))
        if present_ms is not None and by_ms:
            self.set(kind, key, present_ms + by_ms)

    def clear_all(self, kinds: Iterable[TimerKind], key: str) -> None:
        """Forgets the deadlines of these kinds about one thing."""
        due = self._due
        for kind in kinds:
            due.pop((kind, key), None)

    def clear(self, kind: TimerKind, key: str) -> None:
        """Forgets a deadline, if there is one."""
        self._due.pop((kind, key), None)

    def next_ms(self) -> int | None:
        """Returns the earliest deadline, or None."""
        while self._heap:
            at_ms, kind, key = self._heap[0]
            if self._due.get((kind, key)) == at_ms:
                return at_ms
            heapq.heappop(self._heap)
        return None

    def due(self, now_ms: int) -> bool:
        """True when a deadline may have come; False is certain. O(1)."""
        return bool(self._heap) and self._heap[0][0] <= now_ms

    def pop_due(self, now_ms: int) -> tuple[TimerKind, str] | None:
        """Takes the earliest deadline that has come, or returns None."""
        heap, due = self._heap, self._due
        while heap and heap[0][0] <= now_ms:
            at_ms, kind, key = heapq.heappop(heap)
            if due.get((kind, key)) == at_ms:
                del due[(kind, key)]
                return kind, key
        return None
