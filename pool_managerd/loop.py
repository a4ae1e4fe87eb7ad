"""The event loop of the process: it looks at its sockets at most once in a few milliseconds.

A host's work is many small events that nobody has put in step: a token of this stream, a token of
that one, a message that has left. Waking up for each costs far more than the event itself. So what
comes after a pause is taken at once, and what comes within `gather_ms` of the last look waits for
company: up to `1000 / gather_ms` wake-ups a second, however many streams there are.

grpc.aio tells the loop of each completed operation by one byte in a socket, and its reader takes
one byte but all completions: the surplus bytes are taken away before it runs. Source: grpc,
src/python/grpcio/grpc/_cython/_cygrpc/aio/completion_queue.pyx.pxi, `_handle_events`.
"""

import array
import asyncio
import fcntl
import selectors
import socket
import termios
import time
from collections.abc import Callable
from typing import Any

_GRPC_READER = "PollerCompletionQueue._handle_events"
_Events = list[tuple[selectors.SelectorKey, int]]


class GatheringSelector(selectors.EpollSelector):
    """Like its base, but a look that comes too soon after the last one waits for more events."""

    def __init__(self, gather_ms: int) -> None:
        super().__init__()
        self._gather_s = gather_ms / 1000
        self._looked_s = 0.0

    def select(self, timeout: float | None = None) -> _Events:
        """Returns what is ready. A timeout of 0, of a loop that has work, never waits."""
        if timeout == 0:
            return super().select(0)
        events = super().select(timeout)
        early_s = self._looked_s + self._gather_s - time.monotonic()
        if events and early_s > 0:
            time.sleep(early_s)
            # Readiness is level-triggered: what was ready is ready still.
            events = super().select(0)
        self._looked_s = time.monotonic()
        return events


class Loop(asyncio.SelectorEventLoop):
    """As asyncio's, with such a selector."""

    def __init__(self, gather_ms: int) -> None:
        super().__init__(GatheringSelector(gather_ms))

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """Watches a descriptor; surplus wake-ups of grpc.aio are dropped before its reader runs."""
        if isinstance(fd, socket.socket) and _GRPC_READER in repr(callback):
            callback = _Gathered(fd, callback)
        super().add_reader(fd, callback, *args)


class _Gathered:
    """Calls grpc's reader once for all bytes that are there.

    A completion is queued before its byte is written, so whatever the dropped bytes stood for is
    found by the reader that runs right after. It reads one byte without looking: one is left.
    """

    def __init__(self, wakes: socket.socket, read: Callable[[], Any]) -> None:
        self._wakes = wakes
        self._read = read
        self._waiting = array.array("i", [0])

    def __call__(self) -> None:
        fcntl.ioctl(self._wakes.fileno(), termios.FIONREAD, self._waiting)
        if self._waiting[0] > 1:
            self._wakes.recv(self._waiting[0] - 1)
        self._read()
