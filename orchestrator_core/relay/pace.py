"""When readers are woken: at once, or together while output comes in many small pieces.

A message costs far more than the tokens in it, and less when dozens leave in one go: the poller
of grpc then wakes once for all of them. A frame of a busy host is such a company by itself. Frames
of many hosts that hold a few tokens each are not, so their readers are woken together. LO-301.
"""

import asyncio
from collections.abc import Callable

# The longest time for which a reader is held back, and what counts as many frames in it.
GATHER_S = 0.005
FRAMES_MANY = 4


class Pace:
    """Counts frames, and holds wake-ups back while there were many in the last `GATHER_S`."""

    def __init__(self) -> None:
        self._gathering = False
        self._frames = 0
        self._ends_s = 0.0
        self._held: list[Callable[[], None]] = []

    def frame(self) -> None:
        """A frame with output is about to be taken."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._ends_s:
            # After a pause as long as the window the last count says nothing.
            recent = now_s < self._ends_s + GATHER_S
            self._gathering = recent and self._frames >= FRAMES_MANY
            self._frames, self._ends_s = 0, now_s + GATHER_S
        self._frames += 1

    def wake(self, reader: Callable[[], None]) -> None:
        """Wakes a reader now, or with the others when the present window ends."""
        if not self._gathering:
            reader()
            return
        if not self._held:
            asyncio.get_running_loop().call_at(self._ends_s, self._release)
        self._held.append(reader)

    def _release(self) -> None:
        held, self._held = self._held, []
        for reader in held:
            reader()
