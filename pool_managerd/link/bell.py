"""A flag for one waiter: without a timer or a task for each wait, because frames wait for it."""

import asyncio


class Bell:
    """Wakes its one waiter when it is rung, but not before the time that the wait names."""

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None
        self._not_before_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """Wakes the waiter, or the next one; rings until then are one."""
        if self._rung:
            return
        self._rung = True
        if self._waiter is not None:
            self._answer()

    async def wait(self, not_before_s: float = 0.0) -> None:
        """Waits until it is rung and the loop's clock shows `not_before_s`; takes the ring away.

        What happens meanwhile costs one wake-up: rings before that time only start a timer.
        """
        assert self._waiter is None, "a bell has one waiter"
        loop = asyncio.get_running_loop()
        if not self._rung or loop.time() < not_before_s:
            self._waiter, self._not_before_s = loop.create_future(), not_before_s
            try:
                if self._rung:
                    self._answer()
                await self._waiter
            finally:
                self._waiter = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
        self._rung = False

    def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before_s:
            self._timer = loop.call_at(self._not_before_s, self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
