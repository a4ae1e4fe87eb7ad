"""Work that may never end: a disk or a server of files that hangs keeps whoever asks it.

Each runs in a thread of its own. An executor's thread would be lost to all others while it hangs,
and waited for when the process ends; these are not.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

Outcome = tuple[_T | None, BaseException | None]
"""What work returned, or what it raised."""


def started(work: Callable[[], _T]) -> "asyncio.Future[Outcome[_T]]":
    """Starts `work`; its outcome comes to the running event loop. Nobody need wait for it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Outcome[_T]] = loop.create_future()

    def tell(outcome: "Outcome[_T]") -> None:
        if not ended.cancelled():
            ended.set_result(outcome)

    def run() -> None:
        outcome: Outcome[_T]
        try:
            outcome = work(), None
        except BaseException as raised:  # noqa: BLE001 - it belongs to whoever asked
            outcome = None, raised
        # The loop is closed where nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="patient", daemon=True).start()
    return ended


async def in_thread(work: Callable[[], _T]) -> _T:
    """Returns, or raises, what `work` does; a cancel leaves its thread behind.

    Takes as long as the disk does: whoever calls bounds it.
    """
    result, error = await started(work)
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # without an error it is what `work` returned
