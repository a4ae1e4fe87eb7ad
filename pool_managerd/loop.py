"""The event loop of the process: uvloop, which takes the wake-ups of grpc.aio together.

grpc.aio tells the loop of each completed operation by one byte in a socket, and its reader of that
socket takes one byte but all completions. A relay completes dozens of writes at a time, so most
bytes wake the loop for nothing. Source: grpc, src/python/grpcio/grpc/_cython/_cygrpc/aio/
completion_queue.pyx.pxi, `_handle_events`. What that saves stands in benchmarks/README.md.
"""

import array
import fcntl
import socket
import termios
from collections.abc import Callable
from typing import Any

import uvloop

_GRPC_READER = "PollerCompletionQueue._handle_events"


class Loop(uvloop.Loop):
    """As uvloop's. Without that reader of grpc.aio, nothing differs."""

    def add_reader(  # type: ignore[override] # uvloop does not say that the types vary
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
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
