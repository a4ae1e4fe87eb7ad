"""Something changed: an `asyncio.Event` with one waiter, which costs a fraction of it."""

import asyncio


class Flag:
    """Set by anybody on the event loop; one task at a time waits for it."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Lets the waiter go on."""
        if not self._set:
            self._set = True
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def clear(self) -> None:
        """The next wait is for something new."""
        self._set = False

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for a change; False when the time is over first. One task at a time."""
        if self._set:
            return True
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if timeout_s is None:
            await waiter
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        return True
