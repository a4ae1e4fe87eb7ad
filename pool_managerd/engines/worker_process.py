"""A supervised child process: one line in, one line out, a bounded tail of its log. ORCH-3001."""

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

LOG_LINES = 200
"""Lines of a worker's log that are kept."""

LOG_LINE_CHARS = 1_000
"""Characters of each of those lines that are kept."""

_READ_BYTES = 65_536
_EXIT_GRACE_S = 2.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class LogTail:
    """The last lines of a log, each cut to a length; holds at most 200 kB.

    `on_line` gets every line as it ends.
    """

    on_line: Callable[[str], None] | None = None

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._partial = ""

    def feed(self, data: bytes) -> None:
        """Takes what the process wrote, in pieces of any size."""
        *ends, rest = data.decode("utf-8", "replace").split("\n")
        for end in ends:
            line = (self._partial + end)[:LOG_LINE_CHARS].rstrip()
            self._lines.append(line)
            self._partial = ""
            if self.on_line is not None:
                self.on_line(line)
        self._partial = (self._partial + rest)[:LOG_LINE_CHARS]

    def last(self, count: int) -> tuple[str, ...]:
        """Returns the last non-empty lines, oldest first."""
        lines = [line for line in (*self._lines, self._partial) if line]
        return tuple(lines[-count:])


class WorkerProcess:
    """A Python module that runs in a process of its own and ends when its standard input does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None, "standard input is a pipe"
        assert process.stdout is not None, "standard output is a pipe"
        assert process.stderr is not None, "standard error is a pipe"
        self.log = LogTail()
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._pump = asyncio.create_task(self._pump_log(process.stderr))
        self._exit = asyncio.create_task(self._wait())

    @classmethod
    async def spawn(cls, module: str) -> "WorkerProcess":
        """Starts `python -m module` with this interpreter.

        Raises:
            OSError: when no process can be started.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # `-m` finds the package from its root, however the parent itself was started.
            cwd=_PACKAGE_ROOT,
            # A Ctrl-C in the parent's terminal must not end the engine before it is drained.
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True once the process is gone."""
        return self._exit.done()

    async def ask(self, line: bytes) -> bytes:
        """Writes a line to standard input and returns the first line of standard output.

        The answer is empty if the process ends without one.
        """
        try:
            self._stdin.write(line + b"\n")
            await self._stdin.drain()
            return await self._stdout.readline()
        except (OSError, ValueError):
            return b""

    async def wait_exit(self) -> str:
        """Returns a sentence for people once the process is gone."""
        return await asyncio.shield(self._exit)

    async def stop(self) -> None:
        """Closes standard input, and kills the process if it is not gone soon. Idempotent."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_EXIT_GRACE_S):
                await self.wait_exit()
        except TimeoutError:
            self.kill()
            await self.wait_exit()
        await asyncio.wait([self._pump], timeout=_EXIT_GRACE_S)
        self._pump.cancel()

    def kill(self) -> None:
        """Sends SIGKILL unless the process is gone."""
        if self._process.returncode is None:
            self._process.kill()

    async def _wait(self) -> str:
        code = await self._process.wait()
        if code < 0:
            return f"the engine worker (pid {self.pid}) was killed by {signal.Signals(-code).name}"
        return f"the engine worker (pid {self.pid}) exited with status {code}"

    async def _pump_log(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_READ_BYTES):
            self.log.feed(data)
