"""The event loop of the process: asyncio's, whose looks at its sockets can be put off for a while.

Tokens that come just after a frame wait for the next one. So there is no hurry to read them: read
together they cost one wake-up of the process instead of one each, and they leave no later. What
that saves stands in benchmarks/README.md.
"""

import asyncio
import selectors
import time
from collections.abc import Callable


class _Patient(selectors.DefaultSelector):
    """Sleeps until it may look, without asking the kernel who has something meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.not_before_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the selector's, after the wait; a timer that is due before it ends it."""
        wait_s = self.not_before_s - time.monotonic()
        if wait_s > 0:
            if timeout is not None and timeout < wait_s:
                if timeout > 0:
                    time.sleep(timeout)
                return []
            time.sleep(wait_s)
            timeout = None if timeout is None else timeout - wait_s
        return super().select(timeout)


class PatientLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on sockets that can wait."""

    def __init__(self) -> None:
        self._patient = _Patient()
        super().__init__(self._patient)

    def hold_until(self, when_s: float) -> None:
        """Looks at no socket until its clock shows `when_s`; timers and callbacks are on time."""
        self._patient.not_before_s = when_s


def holder() -> Callable[[float], None]:
    """How to hold the running loop; without effect on one that cannot be held."""
    loop = asyncio.get_running_loop()
    return loop.hold_until if isinstance(loop, PatientLoop) else lambda _when_s: None
