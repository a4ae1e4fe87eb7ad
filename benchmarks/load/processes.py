"""Starting processes of a benchmark, and reading what they took from /proc."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.control import Fields

ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
# Replies of a load process are short, but latencies of a long run may come in one line.
LINE_BYTES_MAX = 1 << 22
_CLOCK_SCHED = 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Seconds of CPU that all threads of a process have taken, user and system.

    The sum of utime and stime, but to the nanosecond instead of in ticks of ten milliseconds.
    Source: the kernel's include/linux/posix-timers_types.h, clock of another process.
    """
    return time.clock_gettime(~pid << 3 | _CLOCK_SCHED)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


class ProcessError(Exception):
    """A process did not do what it was asked; the message ends with its log."""


@dataclass
class Child:
    """A process that ends with this one. Its errors go to a log file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(
        cls, name: str, arguments: list[str], directory: Path, env: dict[str, str] | None = None
    ) -> "Child":
        """Starts `python -m arguments...`."""
        program = [sys.executable, "-m", "demo.child", str(os.getpid()), *arguments]
        return await cls.start_program(name, program, directory, env)

    @classmethod
    async def start_program(
        cls,
        name: str,
        program: list[str],
        directory: Path,
        env: dict[str, str] | None = None,
        *,
        quiet: bool = False,
    ) -> "Child":
        """Starts any program; with `quiet` nobody reads its output."""
        log = directory / f"{name}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *program,
                stdin=PIPE,
                stdout=DEVNULL if quiet else PIPE,
                stderr=errors,
                env=os.environ | (env or {}),
                limit=LINE_BYTES_MAX,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    async def answer(self) -> Fields:
        """Reads the next answer.

        Raises:
            ProcessError: when it ended instead, or took too long.
        """
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise ProcessError(f"{self.name} does not answer:\n{self.log_tail()}") from None
        if not line:
            raise ProcessError(f"{self.name} ended:\n{self.log_tail()}")
        fields: Fields = json.loads(line)
        return fields

    async def ask(self, command: str, **fields: object) -> Fields:
        """Sends a command and returns the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **fields}).encode() + b"\n")
        await self.process.stdin.drain()
        return await self.answer()

    async def logged(self, event: str) -> Fields:
        """Waits for a JSON line of that event in its log, at most ten seconds."""
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while True:
                for line in self.log.read_text().splitlines():
                    with contextlib.suppress(ValueError):
                        fields = json.loads(line)
                        if isinstance(fields, dict) and fields.get("event") == event:
                            return fields
                if self.process.returncode is not None:
                    raise ProcessError(f"{self.name} ended:\n{self.log_tail()}")
                await asyncio.sleep(0.05)

    def log_tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    async def stop(self) -> None:
        """Ends it: by closing its input, then by signals."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()


async def start_sink(directory: Path) -> tuple[Child, str]:
    """A receiver of OTLP, and its endpoint."""
    sink = await Child.start("sink", ["benchmarks.load.sink"], directory)
    return sink, str((await sink.answer())["endpoint"])


async def start_orchestratord(
    directory: Path, settings: str = "", otlp: str = ""
) -> tuple[Child, str]:
    """A real orchestratord on SQLite with all telemetry, and its address."""
    config = directory / "orchestratord.toml"
    config.write_text(
        'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\nlog_format = "json"\n'
        f"shutdown_grace_ms = 0\n{settings}"
    )
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp} if otlp else {}
    child = await Child.start(
        "orchestratord", ["orchestrator_core", "--config", str(config)], directory, env
    )
    return child, str((await child.logged("listening"))["address"])
