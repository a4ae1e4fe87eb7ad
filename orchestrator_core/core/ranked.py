"""A sorted set of integers that knows ranks.

Mutable on purpose: it is the hot table of the queue. A list of sorted runs of at most `RUN_MAX`
members keeps every operation at one bisection plus one short memmove, so cost stays flat to
hundreds of thousands.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

RUN_MAX = 512


@dataclass(slots=True, eq=False, repr=False)
class RankedSet:
    """Sorted set of ints. add, discard: O(log n + RUN_MAX); first: O(1); rank: O(n / RUN_MAX)."""

    _length: int = 0
    _lows: list[int] = field(default_factory=list)
    _runs: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        for run in self._runs:
            yield from run

    def __contains__(self, value: int) -> bool:
        index = self._run_of(value)
        if index < 0:
            return False
        run = self._runs[index]
        place = bisect_left(run, value)
        return place < len(run) and run[place] == value

    def first(self) -> int:
        """Returns the least member. Raises IndexError when empty."""
        return self._runs[0][0]

    def last(self) -> int:
        """Returns the greatest member. Raises IndexError when empty."""
        return self._runs[-1][-1]

    def add(self, value: int) -> None:
        """Adds a member. Raises ValueError when it is one already."""
        last = self._runs[-1] if self._runs else None
        if last is not None and value > last[-1] and len(last) < RUN_MAX:
            last.append(value)
            self._length += 1
            return
        if value in self:
            raise ValueError(f"{value} is in the set already")
        self._length += 1
        if not self._runs:
            self._runs.append([value])
            self._lows.append(value)
            return
        index = max(0, self._run_of(value))
        run = self._runs[index]
        insort(run, value)
        self._lows[index] = run[0]
        if len(run) > RUN_MAX:
            half = len(run) // 2
            self._runs[index : index + 1] = [run[:half], run[half:]]
            self._lows[index : index + 1] = [run[0], run[half]]

    def remove(self, value: int) -> None:
        """Removes a member. Raises KeyError when it is none."""
        runs, lows = self._runs, self._lows
        index = place = 0
        # A queue gives up its first member again and again: that one need not be searched.
        if not lows or lows[0] != value:
            index = bisect_right(lows, value) - 1
            place = bisect_left(runs[index], value) if index >= 0 else 0
            if index < 0 or place == len(runs[index]) or runs[index][place] != value:
                raise KeyError(value)
        run = runs[index]
        del run[place]
        self._length -= 1
        if not run:
            del runs[index], lows[index]
        elif place == 0:
            lows[index] = run[0]

    def above(self, value: int) -> int | None:
        """Returns the least member above `value`, which need not be a member; None without one."""
        index = self._run_of(value)
        if index >= 0:
            run = self._runs[index]
            place = bisect_right(run, value)
            if place < len(run):
                return run[place]
        return self._lows[index + 1] if index + 1 < len(self._lows) else None

    def rank(self, value: int) -> int:
        """Returns the number of members below `value`, which need not be a member."""
        runs, index = self._runs, bisect_right(self._lows, value) - 1
        if index < 0:
            return 0
        place = bisect_left(runs[index], value)
        if index > len(runs) // 2:
            return self._length - sum(map(len, runs[index:])) + place
        return sum(map(len, runs[:index])) + place

    def _run_of(self, value: int) -> int:
        """Index of the run that holds or would hold `value`; -1 when below every run."""
        return bisect_right(self._lows, value) - 1
