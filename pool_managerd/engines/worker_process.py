"""A supervised child process: one line in, lines out, a bounded log. ORCH-3001."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pool_managerd.engines.engine_log import EngineLog, LogSettings, LogTail
from pool_managerd.engines.port import EngineError

_EXIT_GRACE_S = 2.0
_KILLED_S = 5.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class StuckProcessError(EngineError):
    """A process that not even SIGKILL ends."""


class WorkerProcess:
    """A Python program that runs in a process of its own and ends when its standard input does."""

    def __init__(self, process: asyncio.subprocess.Process, settings: LogSettings) -> None:
        assert process.stdin is not None, "standard input is a pipe"
        assert process.stdout is not None, "standard output is a pipe"
        assert process.stderr is not None, "standard error is a pipe"
        self._log = EngineLog(settings)
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._pump = asyncio.create_task(self._log.pump(process.stderr))
        self._exit = asyncio.create_task(self._wait())
        self._killed_here = False

    @classmethod
    async def spawn(
        cls,
        arguments: Sequence[str],
        settings: LogSettings | None = None,
        *,
        env: Mapping[str, str],
    ) -> "WorkerProcess":
        """Starts this interpreter with `arguments` and the environment `env`.

        Raises:
            OSError: when no process can be started.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            # `-m` finds the package from its root, however the parent itself was started.
            cwd=_PACKAGE_ROOT,
            # A Ctrl-C in the parent's terminal must not end the engine before it is drained.
            start_new_session=True,
        )
        return cls(process, settings or LogSettings())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> LogTail:
        """The last lines that it wrote to standard error."""
        return self._log.tail

    @property
    def ended(self) -> bool:
        """True once the process is gone."""
        return self._exit.done()

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it lives, and if we sent the signal."""
        return None if self._killed_here else self._process.returncode

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

    async def hear(self) -> bytes:
        """Returns the next line of standard output, empty at its end."""
        try:
            return await self._stdout.readline()
        except (OSError, ValueError):
            return b""

    async def wait_exit(self) -> str:
        """Returns a sentence for people once the process is gone."""
        return await asyncio.shield(self._exit)

    async def stop(self, order: bytes = b"", grace_s: float = 0.0) -> None:
        """Ends the process. Idempotent.

        With an `order` that line goes to standard input first, and the process has `grace_s` to
        follow it. Then standard input is closed, and two seconds later SIGKILL ends it.

        Raises:
            StuckProcessError: when that has no effect, as in a driver that hangs.
        """
        if order and not self.ended:
            with contextlib.suppress(OSError, RuntimeError):
                self._stdin.write(order + b"\n")
            await asyncio.wait([self._exit], timeout=grace_s)
        self._stdin.close()
        await asyncio.wait([self._exit], timeout=_EXIT_GRACE_S)
        if not self.ended:
            self.kill()
            await asyncio.wait([self._exit], timeout=_KILLED_S)
            if not self.ended:
                raise StuckProcessError(
                    f"process {self.pid} has not ended {_KILLED_S:.0f} s after SIGKILL, and may "
                    "still hold its memory: look at the kernel log (dmesg)"
                )
        await asyncio.wait([self._pump], timeout=_EXIT_GRACE_S)
        self._pump.cancel()
        await self._log.close()

    def abandon(self) -> None:
        """Closes standard input, which is the order to end at once. Idempotent."""
        self._stdin.close()

    def kill(self) -> None:
        """Sends SIGKILL unless the process is gone."""
        if self._process.returncode is None:
            self._killed_here = True
            self._process.kill()

    async def settle(self, timeout_s: float) -> None:
        """Waits until all that an ended process wrote has arrived, at most `timeout_s`."""
        await asyncio.wait([self._pump], timeout=timeout_s)

    async def _wait(self) -> str:
        code = await self._process.wait()
        return f"the engine worker (pid {self.pid}) {ended_with(code)}"


def ended_with(code: int) -> str:
    """How a process ended, for people: by its return code, negative for a signal."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
