"""Runs the `llorch` command as its user does: as a process of its own, or faster, in this one."""

import asyncio
import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaorch_client.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
EXIT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    def records(self) -> list[Any]:
        """The JSON objects on stdout, one per line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def environment(address: str, **extra: str) -> dict[str, str]:
    """The environment of the command: this process's, without what would change its output."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LLORCH_", "COVERAGE", "COV_"))
        and key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    path = os.pathsep.join(str(ROOT / part) for part in (".", "proto", "clients/python"))
    return {**kept, "PYTHONPATH": path, "LLORCH_SERVER": address, **extra}


async def start(
    address: str, *arguments: str, stderr: int = asyncio.subprocess.PIPE, **extra: str
) -> asyncio.subprocess.Process:
    """Starts the command against the server at `address`."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llorch",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=environment(address, **extra),
    )


async def finish(process: asyncio.subprocess.Process, stdin: str = "") -> Outcome:
    """Waits for the command's end; one that hangs is killed and fails the test."""
    try:
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            stdout, stderr = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Outcome(process.returncode, stdout.decode(), (stderr or b"").decode())


async def llorch(address: str, *arguments: str, stdin: str = "", **extra: str) -> Outcome:
    """Runs the command to its end."""
    return await finish(await start(address, *arguments, **extra), stdin)


async def within(address: str, *words: str) -> Outcome:
    """Runs the command in a thread of this process; a usage error of argparse is an outcome too."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                return main(["--server", address, *words])
            except SystemExit as exit_:
                return int(exit_.code or 0)

    code = await asyncio.to_thread(run)
    return Outcome(code, out.getvalue(), err.getvalue())


def cells(line: str) -> list[str]:
    """Words of a line, in which columns are as wide as they are."""
    return line.split()


def table_of(text: str) -> list[list[str]]:
    """Words of each line."""
    return [cells(line) for line in text.splitlines()]
