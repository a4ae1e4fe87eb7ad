"""Blocking work of the event loop's tasks, in a few threads, that cancelling cannot tear apart."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from orchestrator_core.store.worker import Worker

THREADS = 4

_T = TypeVar("_T")


class Threads:
    """`THREADS` threads of one name. Belongs to the event loop; `close` last."""

    def __init__(self, name: str) -> None:
        self._worker = Worker(name, THREADS)
        self._closed = False
        self._working: set[asyncio.Future[Any]] = set()
        self._begun: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Does blocking work; a cancelled caller goes on only once it is over.

        Else what a thread works with would be closed under it. After `close` it raises OSError.
        """
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "its threads have ended")
        done = self._worker.ask(work)
        self._working.add(done)
        done.add_done_callback(self._working.discard)
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

    async def close(self, last: Callable[[], None], patience_s: float) -> bool:
        """Waits for what has begun, does `last` in a thread, and ends the threads. Idempotent.

        False when that was not over after `patience_s`, as on a disk that does not answer. Then
        nobody waits for the threads any more, and whoever did is cancelled.
        """
        if self._closed:
            return True
        closing = asyncio.create_task(self._close(last))
        over, _ = await asyncio.wait([closing], timeout=patience_s)
        self._closed = True
        if not over:
            for waiting in (closing, *self._working, *self._begun):
                waiting.cancel()
        self._worker.stop(wait=False)
        if over:
            closing.result()
        return bool(over)

    async def _close(self, last: Callable[[], None]) -> None:
        while under_way := self._begun | self._working:
            await asyncio.wait(under_way)
        await self._worker.run(last)
