"""The clock of the shell: the only place that asks what time it is."""

import time
from typing import Final, Protocol

import structlog

# Linux's monotonic clock stands still while the machine sleeps, and this one does not. Elsewhere
# there is the monotonic one alone. Source: clock_gettime(2).
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Two clocks that run freely differ by less; by more, one of them was set.
APART_MIN_MS = 1_000
# From so much on it is told: people see it in the times that they are shown.
TOLD_MIN_MS = 60_000

_log = structlog.get_logger("orchestratord")


class Clock(Protocol):
    """Gives the core its time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes back, also not over a restart."""
        ...

    def ahead_ms(self) -> int:
        """By how much this is ahead of the machine's clock, negative: behind; 0 for little.

        That is so where the machine's clock was set since the start, or had been wrong in an
        earlier run. Instants that others name are by the machine's.
        """
        ...


class SystemClock:
    """Wall time at start plus what has passed since, never below the journal's latest instant.

    Time for which the machine slept has passed too, where the system counts it: a deadline is real
    time. Whoever is judged by silence is given it back, see `pauses`.
    """

    def __init__(self, not_before_ms: int = 0) -> None:
        wall_ms = time.time_ns() // 1_000_000
        self._base_ms = max(wall_ms, not_before_ms)
        self._start_ns = time.clock_gettime_ns(_ELAPSED)

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes back, also not over a restart."""
        return self._base_ms + (time.clock_gettime_ns(_ELAPSED) - self._start_ns) // 1_000_000

    def ahead_ms(self) -> int:
        """See `Clock.ahead_ms`."""
        ahead_ms = self.now_ms() - time.time_ns() // 1_000_000
        return ahead_ms if abs(ahead_ms) >= APART_MIN_MS else 0


class ClockWatch:
    """Tells the log when a clock and that of the machine have come apart, or nearer again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told_ms = 0

    def look(self) -> None:
        """Compares the two."""
        ahead_ms = self._clock.ahead_ms()
        if abs(ahead_ms - self._told_ms) < TOLD_MIN_MS:
            return
        self._told_ms = ahead_ms
        way = "ahead of" if ahead_ms > 0 else "behind"
        _log.warning(
            "clock_apart",
            ahead_ms=ahead_ms,
            human=f"The times that jobs are shown with are {abs(ahead_ms) // 1000} s {way} this "
            "machine's clock, which was set, or was wrong in an earlier run; deadlines count from "
            "now on as they were meant. A restart helps where they are behind.",
        )


def wall_s() -> float:
    """Seconds since 1970 as the machine has it now, for ends that people have stated."""
    return time.time_ns() / 1e9
