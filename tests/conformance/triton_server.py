"""A real Triton server with the scripted model, as `make engines-triton` installs it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".build" / "triton"
REPOSITORY = Path(__file__).resolve().parent / "triton_repository"
MODEL = "scripted"
BUSY_METRIC = "scripted_running"
CTX_MAX = 2048
_START_LIMIT_S = 30.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton talks to its model's process


def missing() -> str:
    """Returns why the server cannot run here, or nothing."""
    if not (ENVIRONMENT / ".installed").exists():
        return "no Triton server here: run `make engines-triton`"
    return ""


@dataclass(frozen=True)
class TritonServer:
    """A running server."""

    address: str
    metrics_url: str
    process: asyncio.subprocess.Process
    shm_prefix: str

    def kill(self) -> None:
        """Ends it as `kill -9` would; its model's process notices by itself."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Ends it and what it leaves behind. Idempotent."""
        self.kill()
        await self.process.wait()
        remove_regions(self.shm_prefix)


def command(grpc_port: str, metrics_port: str, shm_prefix: str) -> tuple[str, ...]:
    """Returns the server's program and arguments; no model is loaded."""
    package = next(ENVIRONMENT.glob("lib/python*/site-packages/pytriton/tritonserver"))
    settings = {
        "model-repository": REPOSITORY,
        "model-control-mode": "explicit",
        "backend-directory": package / "backends",
        "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        "allow-http": "false",
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "metrics-address": "127.0.0.1",
        "metrics-port": metrics_port,
        "allow-gpu-metrics": "false",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return (str(package / "bin" / "tritonserver"), *options)


def search_path() -> str:
    """Returns a PATH whose first `python3` finds numpy for the backend."""
    return f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"


async def start_server(log: Path, *, empty: bool = False) -> TritonServer:
    """Starts a server with the scripted model and returns once it takes connections.

    With `empty`, no model is loaded yet.
    """
    grpc_port, metrics_port = free_ports(2)
    shm_prefix = f"llamaorch_test_{os.getpid()}_{grpc_port}"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command(str(grpc_port), str(metrics_port), shm_prefix),
            *([] if empty else [f"--load-model={MODEL}"]),
            stdout=sink,
            stderr=sink,
            env={**os.environ, "PATH": search_path()},
            start_new_session=True,
        )
    server = TritonServer(
        f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics", process, shm_prefix
    )
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            await _until_listening(process, (grpc_port, metrics_port), log)
    except BaseException:
        await server.close()
        raise
    return server


@asynccontextmanager
async def running_server(log: Path, *, empty: bool = False) -> AsyncIterator[TritonServer]:
    """Runs a server as `start_server` does, and ends it."""
    server = await start_server(log, empty=empty)
    try:
        yield server
    finally:
        await server.close()


def remove_regions(prefix: str) -> None:
    """Removes the shared memory that a killed server leaves."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


async def _until_listening(
    process: asyncio.subprocess.Process, ports: tuple[int, ...], log: Path
) -> None:
    for port in ports:
        while True:
            assert process.returncode is None, _end_of(log)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                break


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
