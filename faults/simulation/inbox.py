"""What has arrived at one end of a call, in order."""

import asyncio
from collections import deque


class Inbox:
    """Messages that arrived, and an end after which there are no more."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._ended = False
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: bytes) -> None:
        """Adds a message."""
        if not self._ended:
            self._items.append(item)
            self.wake()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Lets the reader look again."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def fail(self) -> None:
        """Forgets what was not read, and ends."""
        self._items.clear()
        self.end()

    def cancel(self) -> None:
        """Cancels who reads."""
        self.fail()
        if self._reader is not None:
            self._reader.cancel()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._items:
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._items.popleft()
