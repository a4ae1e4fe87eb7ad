"""Tells subscribers which pools changed.

A slow subscriber holds one set of pool ids, never a queue.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """Pools that changed since the last look; at most one entry for each pool."""

    def __init__(self) -> None:
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    def note(self, pool_id: str) -> None:
        """Notes a change of `pool_id`."""
        self._changed.add(pool_id)
        self._wake.set()

    async def next(self, timeout_ms: int | None = None) -> frozenset[str]:
        """Waits for a change, at most `timeout_ms`, and returns the pools.

        Empty after the timeout.
        """
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                await self._wake.wait()
        except TimeoutError:
            return frozenset()
        return self.take()

    def take(self) -> frozenset[str]:
        """The pools that changed since the last look, without waiting."""
        self._wake.clear()
        changed = frozenset(self._changed)
        self._changed.clear()
        return changed


class ChangeFeed:
    """Fans changes of pools out to subscribers.

    Whoever serves remote ones looks at `full` first: `watchers_max` bounds those alone, for parts
    of this process come and go with sessions and reloads.
    """

    def __init__(self, watchers_max: int) -> None:
        self.watchers_max = watchers_max
        self._watchers = 0
        self._subscriptions: dict[Subscription, None] = {}

    @property
    def full(self) -> bool:
        """True when no further remote subscriber is to be let in."""
        return self._watchers >= self.watchers_max

    def publish(self, pool_id: str) -> None:
        """Tells every subscriber that `pool_id` changed."""
        for subscription in self._subscriptions:
            subscription.note(pool_id)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """A subscription for the duration of the block."""
        subscription = Subscription()
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)

    @contextmanager
    def watch(self) -> Iterator[Subscription]:
        """The same for a remote subscriber, who takes a place."""
        self._watchers += 1
        try:
            with self.subscribe() as subscription:
                yield subscription
        finally:
            self._watchers -= 1
