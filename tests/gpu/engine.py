"""Runs a pool on a GPU, where a llama-server with CUDA is on PATH."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaorch.pool.v1 import snapshot_pb2
from pool_managerd.models.tiny_gguf import write_tiny_model

READY_TIMEOUT_S = 120.0
POOL = """[[pools]]
pool_id = "engine"
devices = ["{device}"]
engine = {{ kind = "llama_server", base_url = "http://127.0.0.1:{port}", model_id = "tiny" }}
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of it: `ready_s` until the pool was READY, None when it was not."""

    ready_s: float | None
    sentence: str
    failed: bool = False


def run(
    device: snapshot_pb2.Device, pool_managerd: Callable[[str], AbstractContextManager[Any]]
) -> Ran:
    """Starts a llama-server on the device and a pool that attaches to it."""
    command = shutil.which("llama-server")
    if command is None:
        return Ran(None, "not run: no llama-server on PATH")
    listed = subprocess.run(
        [command, "--list-devices"], capture_output=True, text=True, timeout=60, check=False
    )
    if "CUDA" not in listed.stdout:
        return Ran(None, "not run: the llama-server on PATH sees no CUDA device")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        model = Path(folder, "tiny.gguf")
        write_tiny_model(model)
        arguments = ["-m", str(model), "-ngl", "99", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(
            [command, *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": device.device_id},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _until_ready(device, port, pool_managerd)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            server.wait()


def _until_ready(
    device: snapshot_pb2.Device,
    port: int,
    pool_managerd: Callable[[str], AbstractContextManager[Any]],
) -> Ran:
    began_s = time.monotonic()
    with pool_managerd(POOL.format(device=device.device_id, port=port)) as watched:
        ready = watched.until(
            lambda latest: latest["engine"].state == snapshot_pb2.POOL_STATE_READY, READY_TIMEOUT_S
        )
        last = watched.latest["engine"]
    if not ready:
        return Ran(None, f"not READY: {last.state_detail}", failed=True)
    return Ran(time.monotonic() - began_s, f"{last.engine} {last.engine_version}")
