"""The clock of the shell: the only place that asks what time it is."""

import time
from typing import Final, Protocol

# Linux's monotonic clock stands still while the machine sleeps, and this one does not. Elsewhere
# there is the monotonic one alone. Source: clock_gettime(2).
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Gives the core its time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes back, also not over a restart."""
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


def wall_s() -> float:
    """Seconds since 1970 as the machine has it now, for ends that people have stated."""
    return time.time_ns() / 1e9
