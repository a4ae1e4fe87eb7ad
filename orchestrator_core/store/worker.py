"""Threads that do blocking work in the order in which the event loop asks for it.

An executor does the same for three times the processor time of the loop: it makes a future with a
lock beside the loop's own, and chains the two. A commit is asked for hundreds of times a second.
And the process waits for an executor's threads when it ends, for these not: a disk that hangs must
not keep it.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class Worker:
    """Threads from the first call to the last, one by default. Belongs to one event loop.

    Whoever calls awaits each answer, so no more work waits than there are callers.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._asked = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Returns, or raises, what `work` does in a thread; a cancelled call still takes effect.

        After `stop` it never returns.
        """
        return await self.ask(work)

    def ask(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """As `run`, at once: the future of what `work` does."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._asked.put((work, future))
        return future

    def stop(self, *, wait: bool = True) -> None:
        """Ends the threads once they have done what was asked for. Idempotent.

        Blocks until then, unless told not to `wait`.
        """
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            work, future = asked
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001 - it belongs to whoever asked
                result, error = None, raised
            try:
                self._loop.call_soon_threadsafe(_tell, future, result, error)
            except RuntimeError:
                return  # The loop is closed: nobody waits for an answer.


def _tell(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
