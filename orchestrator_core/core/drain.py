"""How fast places in the queue become free, and how many clients wait for one. ORCH-3017.

Only time in which somebody waits is counted, and only jobs that really waited: neither an idle hour
nor jobs that pass straight through say anything about how long a place takes.
"""

from collections import deque
from dataclasses import dataclass, field

DEPARTURES_KEPT = 64


@dataclass(slots=True, eq=False, repr=False)
class DrainRate:
    """Measures departures from the queue. Every call O(1), bounded by `DEPARTURES_KEPT`.

    Its own clock stands still while the queue is empty. Rejected clients are told times one gap
    apart: told the same time, all would come back for one place.
    """

    _busy_ms: int = 0
    _busy_since_ms: int | None = None
    _departed_at: deque[int] = field(default_factory=lambda: deque(maxlen=DEPARTURES_KEPT))
    _promised_ms: int = 0

    def entered(self, now_ms: int) -> None:
        """A job waits from now on."""
        if self._busy_since_ms is None:
            self._busy_since_ms = now_ms

    def paused(self, pause_ms: int, now_ms: int) -> None:
        """Nobody could leave for so long, until now."""
        if self._busy_since_ms is not None:
            self._busy_since_ms = min(now_ms, self._busy_since_ms + pause_ms)

    def left(self, depth: int, now_ms: int, *, freed: bool) -> None:
        """A job left and `depth` still wait. `freed`: it had waited, and nobody took its place."""
        if freed:
            self._departed_at.append(self._clock_ms(now_ms))
        if not depth:
            self._busy_ms = self._clock_ms(now_ms)
            self._busy_since_ms = None

    def next_place_ms(self, gap_ms: int, now_ms: int) -> int:
        """When the next place should be free that nobody was told to come back for."""
        return max(self._promised_ms, now_ms) + gap_ms

    def promise(self, at_ms: int) -> None:
        """A client was told to come back at this instant; the next one comes after it."""
        self._promised_ms = max(self._promised_ms, at_ms)

    def gap_ms(self, now_ms: int) -> int | None:
        """Mean time between two departures, rounded up; None until two were seen.

        Never below the mean of the kept gaps; above it when the present one lasts longer already,
        so that a queue that stands still is noticed.
        """
        count = len(self._departed_at)
        if count <= 1:
            return None
        first, last = self._departed_at[0], self._departed_at[-1]
        measured_ms = -(-(last - first) // (count - 1))
        with_open_ms = -(-(self._clock_ms(now_ms) - first) // count)
        return max(measured_ms, with_open_ms)

    def _clock_ms(self, now_ms: int) -> int:
        if self._busy_since_ms is None:
            return self._busy_ms
        return self._busy_ms + now_ms - self._busy_since_ms
