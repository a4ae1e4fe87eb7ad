"""One thread that does blocking work in the order in which the event loop asks for it.

An executor does the same for three times the processor time of the loop: it makes a future with a
lock beside the loop's own, and chains the two. A commit is asked for hundreds of times a second.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class Worker:
    """A thread from the first to the last call. All methods belong to one event loop.

    Whoever calls awaits each answer, so no more work waits than there are callers.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._asked = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Returns, or raises, what `work` does in the thread; a cancelled call still takes effect.

        After `stop` it never returns.
        """
        future: asyncio.Future[_T] = self._loop.create_future()
        self._asked.put((work, future))
        return await future

    def stop(self) -> None:
        """Ends the thread once it has done what was asked for; waits for that. Idempotent."""
        self._asked.put(None)
        self._thread.join()

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
