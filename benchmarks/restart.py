"""How soon orchestratord sees that an engine was killed, and when the pool is READY again.

    python -m benchmarks.restart [--kills 50]

The real orchestratord and pool-managerd with two pools: the embedded llama.cpp with a tiny model,
and a launched server without one. The engine's process is killed with SIGKILL, one pool after the
other; `ListPools` is asked every two milliseconds, so that the times are late by about as much.
READY comes after the first wait of the backoff, 250 to 500 ms by default, and the self-test.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.cancel import percentile
from benchmarks.load.processes import Child, start_orchestratord
from benchmarks.machine import run_on_machine
from llamaorch_client import AsyncClient
from pool_managerd.models.tiny_gguf import write_tiny_model

TIMEOUT_S = 60.0
POLL_S = 0.002
SERVER = Path(__file__).resolve().parent / "load" / "llama_engine.py"
POOLS = ("embedded", "launched")
# Killed again and again, the pools shall neither give up nor wait longer each time.
TOML = """
orchestrator = "{orchestrator}"
listen = "127.0.0.1:0"
devices = "cpu"
[supervision]
storm_failures = 1000
stable_ms = 1
[[pools]]
pool_id = "embedded"
[pools.engine]
kind = "embedded"
model_path = "tiny.gguf"
model_id = "tiny"
[[pools]]
pool_id = "launched"
[pools.engine]
kind = "llama_server"
model_id = "paced"
[pools.engine.launch]
command = ["{python}", "-S", "{server}", "--port", "{{port}}"]
"""


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each pool's engine")
    kills = parser.parse_args().kills
    print(f"python -m benchmarks.restart --kills {kills}")
    with run_on_machine(), tempfile.TemporaryDirectory(prefix="llama-orch-restart-") as directory:
        spans = asyncio.run(measured(Path(directory), kills))
    table = Table(title="milliseconds from SIGKILL of the engine, as seen by orchestratord")
    for heading in ("engine", "until", "n", "p50", "p99", "max"):
        table.add_column(heading)
    for (pool_id, until), rows in spans.items():
        cells = (percentile(rows, 0.5), percentile(rows, 0.99), max(rows))
        table.add_row(pool_id, until, str(len(rows)), *(f"{cell:.0f}" for cell in cells))
    Console().print(table)
    return 0


async def measured(directory: Path, kills: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds by pool and by what was waited for."""
    write_tiny_model(directory / "tiny.gguf")
    orchestratord, address = await start_orchestratord(directory)
    config = directory / "pool-managerd.toml"
    config.write_text(
        TOML.format(orchestrator=address, python=sys.executable, server=SERVER), encoding="utf-8"
    )
    host = await Child.start("pool-managerd", ["pool_managerd", "--config", str(config)], directory)
    spans: dict[tuple[str, str], list[float]] = {}
    try:
        async with AsyncClient(address) as client:
            for pool_id in POOLS:
                await _until(client, pool_id, ready=True)
            for _ in range(kills):
                for pool_id in POOLS:
                    killed_s = time.monotonic()
                    os.kill(engine_pid(host.pid, pool_id), signal.SIGKILL)
                    for until, ready in (("UNREADY", False), ("READY", True)):
                        await _until(client, pool_id, ready=ready)
                        row = spans.setdefault((pool_id, until), [])
                        row.append(1000 * (time.monotonic() - killed_s))
    finally:
        for child in (host, orchestratord):
            await child.stop()
    return spans


def engine_pid(host_pid: int, pool_id: str) -> int:
    """The engine's process: the worker, or what the warden started."""
    wanted = "embedded_worker" if pool_id == "embedded" else str(SERVER)
    for process in psutil.Process(host_pid).children(recursive=True):
        if any(wanted in part for part in process.cmdline()):
            return process.pid
    raise RuntimeError(f"the engine of {pool_id} does not run")


async def _until(client: AsyncClient, pool_id: str, *, ready: bool) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            pools = {pool.pool_id: pool.state for pool in await client.pools()}
            if pool_id in pools and (pools[pool_id] == "READY") == ready:
                return
            await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
