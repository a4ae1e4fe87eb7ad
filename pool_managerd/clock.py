"""Clocks of the shell: monotonic for decisions, wall time for people."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the shell takes time from."""

    def now_ms(self) -> int:
        """Monotonic milliseconds."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; never compared with other clocks."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Monotonic milliseconds."""
        return time.monotonic_ns() // 1_000_000

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()
