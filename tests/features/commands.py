"""Commands as somebody types them: processes of their own."""

import asyncio
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.features.service import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"NO_COLOR": "1", "COLUMNS": "200"}
MODULES = {
    "llorch": "llamaorch_client.cli.main",
    "orchestratord": "orchestrator_core",
    "pool-managerd": "pool_managerd",
}


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


async def run_command(line: str, address: str, directory: Path) -> Answer:
    """Runs one of the project's commands in a directory, to its end."""
    name, *arguments = shlex.split(line)
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "proto", "clients/python"))
    # Not what would change its output.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLORCH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULES[name], *arguments),
        cwd=directory,
        env=kept
        | {"PYTHONPATH": paths, "LLORCH_SERVER": address, "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), err.decode())
