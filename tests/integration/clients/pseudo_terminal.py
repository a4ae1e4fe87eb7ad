"""A program in a pseudo-terminal, read frame by frame."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.integration.clients import llorch as command

WAIT_S = 20.0
POLL_S = 0.05

# Every frame begins at the top left corner.
HOME = b"\x1b[H"

# Only the controlling terminal of a process tells it of a new size.
OWN_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("llorch", run_name="__main__")
"""
LAST_WORD = "quit"
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]")


class PseudoTerminal:
    """A terminal without a screen: what was written since the last frame began is the screen."""

    def __init__(self, process: asyncio.subprocess.Process, leader: int) -> None:
        self.process, self._leader = process, leader
        self.output = b""
        self._gone = False
        self._grew = asyncio.Event()
        asyncio.get_running_loop().add_reader(leader, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._leader, 65_536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._leader)
        self.output += data
        self._grew.set()

    def keys(self, keys: bytes) -> None:
        """Types."""
        os.write(self._leader, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Changes the size, of which the process is told by a signal."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, size)

    def frames(self) -> list[list[str]]:
        """What was drawn whole, as lines of text, frame by frame."""
        parts = (ANSI.sub("", part.decode("utf-8", "ignore")) for part in self.output.split(HOME))
        found = [part.replace("\r", "").split("\n") for part in parts]
        return [lines for lines in found if LAST_WORD in lines[-1]]

    async def until(self, good: Callable[[list[str]], bool]) -> list[str]:
        """Waits for a frame in which something is so."""
        async with asyncio.timeout(WAIT_S):
            while True:
                self._grew.clear()
                for shown in reversed(self.frames()):
                    if good(shown):
                        return shown
                await self._grew.wait()

    async def until_written(self, *words: bytes) -> None:
        """Waits for words anywhere in the output."""
        async with asyncio.timeout(WAIT_S):
            while not all(word in self.output for word in words):
                self._grew.clear()
                await self._grew.wait()

    async def ended(self) -> int:
        """Waits for the end of the process; its exit code."""
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def hang_up(self) -> None:
        """The terminal goes, as when its window is closed; twice is fine."""
        if not self._gone:
            self._gone = True
            asyncio.get_running_loop().remove_reader(self._leader)
            os.close(self._leader)

    @property
    def echoes(self) -> bool:
        """True while the terminal is as a shell wants it: it echoes what is typed."""
        return bool(termios.tcgetattr(self._leader)[3] & termios.ECHO)


@asynccontextmanager
async def terminal(
    address: str, *arguments: str, columns: int = 80, lines: int = 24, **extra: str
) -> AsyncIterator[PseudoTerminal]:
    """The command with a terminal of its own; ended with the block."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    variables = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | extra
    environment = command.environment(address, **variables)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWN_TERMINAL,
        "top",
        *arguments,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    )
    shown = PseudoTerminal(process, leader)
    try:
        yield shown
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        shown.hang_up()
        os.close(follower)


def has(*words: str) -> Callable[[list[str]], bool]:
    """True for a frame with all of these words."""
    return lambda shown: all(word in "\n".join(shown) for word in words)
