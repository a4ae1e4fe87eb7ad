"""Notices that the event loop stood still: nobody was served, and no time was measured."""

import asyncio
from collections.abc import Callable

from orchestrator_core.clock import Clock

# The event loop shows twice a second that it runs; lateness by more than this is a pause: the
# process was stopped, its machine was short of time, or something held the loop.
BEAT_MS = 500
PAUSE_MIN_MS = 500


class Pauses:
    """Compares the clock with the loop's last beat."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beat_ms: int | None = None

    async def watch(self, look: Callable[[], None]) -> None:
        """Notes that the event loop runs, until cancelled; `look` is called after each beat."""
        while True:
            self._beat_ms = self._clock.now_ms()
            await asyncio.sleep(BEAT_MS / 1000)
            look()

    def pause_ms(self, now_ms: int) -> int:
        """For how long the loop stood still until now; 0 when it did not, or nobody watches."""
        if self._beat_ms is None:
            return 0
        late_ms = now_ms - self._beat_ms - BEAT_MS
        return late_ms if late_ms >= PAUSE_MIN_MS else 0

    def told(self, now_ms: int) -> None:
        """The pause until now is known to whom it concerns."""
        self._beat_ms = now_ms
