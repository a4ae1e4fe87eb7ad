"""Where observers write what they saw. The dead write nothing."""

from collections.abc import Callable

from faults.history import AnyEvent, History
from faults.simulation.virtual_time import Process, VirtualLoop


class Recorder:
    """One history in one order."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._events: list[AnyEvent] = []

    @property
    def history(self) -> History:
        """Everything so far."""
        return tuple(self._events)

    @property
    def now_ms(self) -> int:
        """The time that events carry."""
        return self._loop.now_ms

    def record(
        self, process: Process | None, kind: Callable[..., AnyEvent], /, **fields: object
    ) -> None:
        """Adds what a process, or nobody in particular, saw just now."""
        if process is None or process.alive:
            self._events.append(kind(at_ms=self._loop.now_ms, **fields))
