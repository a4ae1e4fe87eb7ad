# SPDX-License-Identifier: Apache-2.0
"""The event loop behind blocking code: its own thread, which runs coroutines for others."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

T = TypeVar("T")
CLOSE_TIMEOUT_S = 10.0


class LoopThread:
    """One event loop on one daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopping = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="llamaorch-client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the loop and waits for it.

        An exception in the waiting thread (Ctrl-C) cancels the work.
        """
        if self.forked:
            work.close()
            raise RuntimeError("this client was opened before a fork: open one in each process")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the blocking client cannot be used from its own thread")
        # Work that is handed to a loop after its stop would never run and never fail.
        with self._lock:
            if self._stopping:
                work.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    @property
    def forked(self) -> bool:
        """True in a child of the process that made it: a fork takes no other thread along."""
        return os.getpid() != self._process

    @property
    def stopped(self) -> bool:
        """True once it runs no work any more."""
        return self._stopping

    def stop(self) -> None:
        """Cancels what still runs, stops the loop and waits for the thread, at most ten seconds."""
        if self.forked:
            return
        with self._lock:
            self._stopping = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_others())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _cancel_others() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
