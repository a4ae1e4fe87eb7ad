"""The clock of the shell: the only place that asks what time it is."""

import time
from typing import Protocol


class Clock(Protocol):
    """Gives the core its time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes back, also not over a restart."""
        ...


class SystemClock:
    """Wall time at start plus monotonic time since, never below the journal's latest instant."""

    def __init__(self, not_before_ms: int = 0) -> None:
        wall_ms = time.time_ns() // 1_000_000
        self._base_ms = max(wall_ms, not_before_ms)
        self._start_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes back, also not over a restart."""
        return self._base_ms + (time.monotonic_ns() - self._start_ns) // 1_000_000


def wall_s() -> float:
    """Seconds since 1970 as the machine has it now, for ends that people have stated."""
    return time.time_ns() / 1e9
