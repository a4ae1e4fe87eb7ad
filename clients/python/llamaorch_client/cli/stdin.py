# SPDX-License-Identifier: Apache-2.0
"""Standard input for a command that reads it while it does other things, and can be ended."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast


@contextmanager
def stdin_to_the_end() -> Iterator[BinaryIO]:
    """Standard input, to be read in a thread; whoever waits there is let go at the end.

    A process ends only once its threads have, and nobody may ever type the rest.
    """
    if sys.platform == "win32":
        # Only connections can be waited for there.
        yield sys.stdin.buffer
        return
    over, end = os.pipe()
    try:
        yield cast("BinaryIO", _Interruptible(sys.stdin.fileno(), over))
    finally:
        # The other end stays open: a thread may be about to look at it.
        os.close(end)


class _Interruptible:
    """What `over` ends, when it is closed at its other end."""

    def __init__(self, number: int, over: int) -> None:
        self._number, self._over = number, over

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are some; none at the end."""
        ready, _, _ = select.select([self._number, self._over], [], [])
        return b"" if self._over in ready else os.read(self._number, size)
