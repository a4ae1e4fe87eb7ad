# SPDX-License-Identifier: Apache-2.0
"""The terminal while `llorch top` has it: keys one by one, a screen of its own, given back after.

What was typed reaches `on_keys`, a change of the size `on_resize`; after Ctrl-Z and `fg` all goes
on. A dumb terminal has no screen to give: frames follow one another there.
"""

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import ConsoleDimensions, Group
from rich.live import Live
from rich.text import Text

from llamaorch_client.cli.top.keys import KeyReader
from llamaorch_client.cli.top.printing import SIZE_UNKNOWN, console_of, glyphs_of, write_lines

READ_BYTES = 1024
# A terminal sends a sequence in one piece; a connection in between may cut it.
ESCAPE_WAIT_S = 0.05


class Terminal:
    """Owns standard input and output from `__enter__` to `__exit__`; lives on the event loop."""

    def __init__(self, on_key: Callable[[str], None], on_resize: Callable[[], None]) -> None:
        self._on_key, self._on_resize = on_key, on_resize
        self._keys = KeyReader()
        self._console = console_of(sys.stdout)
        self._former: list[Any] | None = None
        self._live: Live | None = None
        self._escape: asyncio.TimerHandle | None = None
        self.glyphs = glyphs_of(sys.stdout)

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        if sys.stdin.isatty():
            loop.add_reader(sys.stdin.fileno(), self._readable)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()
        loop = asyncio.get_running_loop()
        if sys.stdin.isatty():
            loop.remove_reader(sys.stdin.fileno())
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            loop.remove_signal_handler(number)

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines; a common size where the terminal does not tell."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.columns and size.lines:
                return size
        return SIZE_UNKNOWN

    def paint(self, lines: Sequence[Text], size: os.terminal_size) -> None:
        """Shows a frame that was drawn for `size`."""
        if self._live is None:
            write_lines([*lines, Text()], self._console, size.columns)
            return
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        self._console.size = ConsoleDimensions(size.columns, size.lines)
        self._live.update(Group(*lines), refresh=True)

    def _take(self) -> None:
        if sys.stdin.isatty():
            self._former = termios.tcgetattr(sys.stdin.fileno())
            # Ctrl-C and Ctrl-Z go on meaning what they mean.
            tty.setcbreak(sys.stdin.fileno())
        if not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()

    def _give_back(self) -> None:
        live, self._live = self._live, None
        former, self._former = self._former, None
        # It may be gone; then there is nothing to give back.
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()
        if former is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, former)

    def _suspend(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        # Here it goes on, some time later.
        self._take()
        self._on_resize()

    def _readable(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), READ_BYTES)
        except OSError:
            data = b""
        if self._escape is not None:
            self._escape.cancel()
            self._escape = None
        for key in self._keys.feed(data) if data else ["q"]:
            self._on_key(key)
        if self._keys.waiting:
            loop = asyncio.get_running_loop()
            self._escape = loop.call_later(ESCAPE_WAIT_S, self._no_more)

    def _no_more(self) -> None:
        for key in self._keys.flush():
            self._on_key(key)
