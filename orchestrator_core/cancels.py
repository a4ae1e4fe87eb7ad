"""Orders to stop an attempt that wait for the journal, but not for long. Design §6.

A crash between such an order and the end of its job in the journal leaves a live job whose attempt
was stopped. So the order leaves once the end is durable, which takes milliseconds. A journal that
is slow or broken holds that of a cancelled job back for `HOLD_S` only: nobody wants the output any
more, and the slot is to be free. The order says that the job was cancelled, and its host tells that
back to whoever comes after the crash, so the job ends as it would have.
"""

import asyncio
from collections.abc import Callable

from orchestrator_core.core.effects import SendCancel

HOLD_S = 0.1
"""How long a slot is kept for a journal that does not answer: half of what a cancel may take."""


class HeldCancels:
    """The orders that wait. `send` gives one to its host; `overdue` says whether it may, unwritten.

    A host may get an order twice; the second does nothing.
    """

    def __init__(
        self, send: Callable[[SendCancel], None], overdue: Callable[[SendCancel], bool]
    ) -> None:
        self._send = send
        self._overdue = overdue
        self._timers: dict[tuple[str, int], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._timers)

    def hold(self, effect: SendCancel) -> None:
        """Keeps an order until it is `durable`, for `HOLD_S` at most."""
        key = effect.job_id, effect.attempt
        if key not in self._timers:
            later = asyncio.get_running_loop().call_later
            self._timers[key] = later(HOLD_S, self._late, key, effect)

    def durable(self, effect: SendCancel) -> None:
        """The end of the job is in the journal."""
        timer = self._timers.pop((effect.job_id, effect.attempt), None)
        if timer is not None:
            timer.cancel()
        self._send(effect)

    def close(self) -> None:
        """Nothing is sent any more that is not durable."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _late(self, key: tuple[str, int], effect: SendCancel) -> None:
        del self._timers[key]
        if self._overdue(effect):
            self._send(effect)
