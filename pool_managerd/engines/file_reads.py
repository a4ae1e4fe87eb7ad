"""Reads of files that may never end: a disk or a server of files that hangs keeps its reader."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pool_managerd.threads import started

_T = TypeVar("_T")


class FileReads:
    """Reads each in a thread of its own (`threads`). Belongs to one event loop.

    Of a path whose reader was left behind nothing else is read until that one has come back, so
    that retries do not gather threads.
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
        ended = started(work)
        try:
            await asyncio.wait([ended])
        finally:
            if not ended.done():
                self._left_behind[path] = ended
        result, error = ended.result()
        if error is not None:
            raise error
        return result  # type: ignore[return-value] # without an error it is what `work` returned
