# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, and the SIGHUP of a terminal that goes, end a command as Ctrl-C does: in order.

`run` then cancels the job that nobody will read, within its bound; a screen is put back. A second
signal ends at once.
"""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP")
# As shells tell it: 143 after SIGTERM.
ENDED_BY_SIGNAL = 128


@contextmanager
def heeded() -> Iterator[list[signal.Signals]]:
    """Within it these signals cancel the task that calls; yields those that have come.

    One that is ignored stays so, as below `nohup`. Elsewhere than in the main thread nothing is
    done.
    """
    come: list[signal.Signals] = []
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "this is called from a coroutine"
    if threading.current_thread() is not threading.main_thread():
        yield come
        return

    def end(number: int, _: FrameType | None) -> None:
        if come:
            # Not by the loop, which stands still while nobody reads what is written.
            raise SystemExit(ENDED_BY_SIGNAL + number)
        come.append(signal.Signals(number))
        loop.call_soon_threadsafe(task.cancel)

    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    former = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if former[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield come
    finally:
        for number in numbers:
            signal.signal(number, former[number])
