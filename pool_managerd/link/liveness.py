"""Whether the other side of a stream lives, as far as this side could tell."""

import asyncio

_LOOKS_PER_TIMEOUT = 3


class Liveness:
    """Counts the other side's silence, and how long it has taken nothing, against one timeout.

    Time in which this process did not run, seen by a late wake-up, is not counted: what had come
    meanwhile could not be read.
    """

    def __init__(self, timeout_ms: int) -> None:
        if timeout_ms <= 0:
            raise ValueError(f"timeout_ms must be positive, is {timeout_ms}")
        self._timeout_s = timeout_ms / 1000
        self._now_s = asyncio.get_running_loop().time
        self._heard_s = self._now_s()
        self._writing_s: float | None = None

    def __enter__(self) -> None:
        """Around one write. Not reentrant: a stream has one writer."""
        self._writing_s = self._now_s()

    def __exit__(self, *_: object) -> None:
        """The write is over."""
        self._writing_s = None

    def heard(self) -> None:
        """Notes a message of the other side."""
        self._heard_s = self._now_s()

    async def watch(self) -> None:
        """Runs until the other side counts as gone.

        Raises:
            TimeoutError: then, at most a third of the timeout late.
        """
        loop = asyncio.get_running_loop()
        interval_s = self._timeout_s / _LOOKS_PER_TIMEOUT
        while True:
            due_s = loop.time() + interval_s
            await asyncio.sleep(interval_s)
            paused_s = loop.time() - due_s
            if paused_s > interval_s / 2:
                self._extend(paused_s)
            elif self._waited_s() >= self._timeout_s:
                raise TimeoutError

    def _extend(self, paused_s: float) -> None:
        now_s = self._now_s()
        self._heard_s = min(now_s, self._heard_s + paused_s)
        if self._writing_s is not None:
            self._writing_s = min(now_s, self._writing_s + paused_s)

    def _waited_s(self) -> float:
        now_s = self._now_s()
        since_s = self._heard_s if self._writing_s is None else min(self._heard_s, self._writing_s)
        return now_s - since_s
