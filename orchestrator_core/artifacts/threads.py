"""Blocking work of the event loop's tasks, in a few threads, that cancelling cannot tear apart."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

THREADS = 4

_T = TypeVar("_T")


class Threads:
    """`THREADS` threads of one name. Belongs to the event loop; `close` last."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(THREADS, name)
        self._begun: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Does blocking work; a cancelled caller goes on only once it is over.

        Else what a thread works with would be closed under it.
        """
        done = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
            if not done.cancelled():
                done.exception()
            raise

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Lets something end that must not stop half-way when its caller goes away."""
        task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what has begun, then ends the threads. Idempotent."""
        while self._begun:
            await asyncio.wait(self._begun)
        # Nothing is under way, so this does not hold the loop up.
        self._pool.shutdown()
