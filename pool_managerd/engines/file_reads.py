"""Reads of files that may never end: a disk or a server of files that hangs keeps its reader."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


class FileReads:
    """Reads each in a thread of its own. Belongs to one event loop.

    An executor's thread would be lost to all others while it hangs, and waited for when the process
    ends; these are not. Of a path whose reader was left behind nothing else is read until that one
    has come back, so that retries do not gather threads.
    """

    def __init__(self) -> None:
        self._left_behind: dict[Path, asyncio.Future[Any]] = {}

    async def run(self, path: Path, work: Callable[[], _T]) -> _T:
        """Returns, or raises, what `work` does with `path`; a cancel leaves its thread behind.

        Takes as long as the disk does: whoever calls bounds it.
        """
        while (left := self._left_behind.get(path)) is not None:
            await asyncio.wait([left])
            if self._left_behind.get(path) is left:
                del self._left_behind[path]
        ended = _started(work)
        try:
            await asyncio.wait([ended])
        finally:
            if not ended.done():
                self._left_behind[path] = ended
        result: _T
        result, error = ended.result()
        if error is not None:
            raise error
        return result


def _started(work: Callable[[], object]) -> "asyncio.Future[Any]":
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        outcome: tuple[object, BaseException | None]
        try:
            outcome = work(), None
        except BaseException as raised:  # noqa: BLE001 - it belongs to whoever asked
            outcome = None, raised
        # The loop is closed where nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, outcome)

    threading.Thread(target=run, name="file-read", daemon=True).start()
    return ended
