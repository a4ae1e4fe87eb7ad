"""SIGHUP while the program is imported, which takes seconds. Imported first. HME-003.

It would end the program, which is a regular end to systemd: a reload right after a start would
leave the service stopped. So it is noted, and counts once there is something to reload.
"""

import contextlib
import signal
from types import FrameType

_heard: list[int] = []


def _note(number: int, _: FrameType | None) -> None:
    _heard.append(number)


def hung_up() -> bool:
    """True when SIGHUP has come."""
    return bool(_heard)


def end_by_hanging_up() -> None:
    """For a command that does not serve: it ends with its terminal."""
    if signal.getsignal(signal.SIGHUP) is _note:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Where it is not the main thread that imports this, signals are another one's.
with contextlib.suppress(ValueError):
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _note)
