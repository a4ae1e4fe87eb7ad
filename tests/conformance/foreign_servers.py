"""Servers that nobody here wrote, started where `make engines-…` has put them."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp

from tests.ports import free_port

_BUILD = Path(__file__).parents[2] / ".build"
TRANSFORMERS = _BUILD / "transformers" / "bin" / "transformers"
LLAMA_SERVER = _BUILD / "llama-server" / "build" / "bin" / "llama-server"

_READY_TIMEOUT_S = 240
_POLL_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Foreign:
    """A running server and its process."""

    base_url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Ends the process as `kill -9` would, and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


async def start_transformers(folder: Path) -> Foreign:
    """Serves the model in `folder` by `transformers serve`, one generation at a time."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    options = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command = [str(TRANSFORMERS), "serve", str(folder), *options]
    return await _started(command, port, environment)


async def start_llama_server(model: Path, slots: int) -> Foreign:
    """Serves a GGUF file by a llama-server that was built from source."""
    port = free_port()
    options = [
        "--host", "127.0.0.1", "--port", str(port), "-np", str(slots), "-c", str(2048 * slots),
        "-t", "1", "-tb", "1", "-b", "256", "--slots", "--metrics", "--no-kv-unified", "--offline",
    ]  # fmt: skip
    return await _started([str(LLAMA_SERVER), "-m", str(model), *options], port, dict(os.environ))


async def _started(command: list[str], port: int, environment: dict[str, str]) -> Foreign:
    with tempfile.TemporaryFile() as log:
        foreign = Foreign(f"http://127.0.0.1:{port}", _spawned(command, environment, log))
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await _wait_until_healthy(foreign)
        except BaseException:
            foreign.kill()
            log.seek(0)
            sys.stderr.write(log.read()[-4_000:].decode(errors="replace"))
            raise
    return foreign


def _spawned(
    command: list[str], environment: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


async def _wait_until_healthy(foreign: Foreign) -> None:
    """A foreign server pushes no news of its start."""
    async with aiohttp.ClientSession() as session:
        while foreign.process.poll() is None:
            try:
                async with session.get(f"{foreign.base_url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(_POLL_INTERVAL_S)
    message = f"{foreign.process.args!r} ended while it started"
    raise RuntimeError(message)


def write_hf_model(folder: Path) -> None:
    """Writes the tiny model with the Python that `transformers serve` runs in."""
    script = Path(__file__).with_name("tiny_hf_model.py")
    python = TRANSFORMERS.with_name("python")
    subprocess.run(
        [str(python), str(script), str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
