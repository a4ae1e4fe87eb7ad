"""Work that waits a moment, to be done many pieces at a time.

Beside the work of a call, which it finds and leaves in the processor's caches, a piece of telemetry
costs several times what it costs for many in a row.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

# Pieces wait for one another so long, and so many of them no longer.
GATHER_S: Final = 0.05
PIECES_MAX: Final = 256

Piece = TypeVar("Piece")


class Gathered(Generic[Piece]):
    """Hands pieces to `work`, in order: after a pause at once, in a burst each `GATHER_S`.

    Without a loop, and from other threads, they are handed over at once. Never more than
    `PIECES_MAX` wait.
    """

    def __init__(self, work: Callable[[list[Piece]], None]) -> None:
        self._work = work
        self._waiting: deque[Piece] = deque()
        # Of two threads that bring a piece at once, one must see that nobody else sees to it.
        self._counting = threading.Lock()
        self._drained_s = 0.0

    def put(self, piece: Piece) -> None:
        """Takes a piece."""
        with self._counting:
            self._waiting.append(piece)
            waiting = len(self._waiting)
        if waiting > 1:
            if waiting >= PIECES_MAX:
                self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        # With a loop's time of its own nothing is measured between two of them.
        wait_s = self._drained_s + GATHER_S - loop.time()
        if 0.0 < wait_s < 2 * GATHER_S:
            loop.call_later(wait_s, self._drain_in, loop)
        else:
            loop.call_soon(self._drain_in, loop)

    def flush(self) -> None:
        """Hands over what waits, now."""
        pieces = []
        while True:
            try:
                pieces.append(self._waiting.popleft())
            except IndexError:
                break
        if pieces:
            self._work(pieces)

    def _drain_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._drained_s = loop.time()
        self.flush()
