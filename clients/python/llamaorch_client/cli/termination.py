# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, and the SIGHUP of a terminal that goes, end a command as Ctrl-C does: in order.

`run` then cancels the job that nobody will read, within its bound; a screen is put back. A second
signal ends at once.
"""

import asyncio
import signal
import threading
from collections.abc import Callable

NAMES = ("SIGTERM", "SIGHUP")


def heeded() -> list[signal.Signals]:
    """Has these signals cancel the task that calls; the answer holds those that have come.

    One that is ignored stays so, as below `nohup`. Elsewhere than in the main thread, and where a
    system knows no signals, nothing is done.
    """
    come: list[signal.Signals] = []
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "this is called from a coroutine"
    if threading.current_thread() is not threading.main_thread():
        return come

    def end(number: signal.Signals) -> Callable[[], None]:
        def handle() -> None:
            come.append(number)
            task.cancel()

        return handle

    for name in NAMES:
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            loop.add_signal_handler(number, end(number))
        except NotImplementedError:
            break
    return come
