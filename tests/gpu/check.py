"""`make gpu-check`: what this host's pool-managerd says of its NVIDIA GPUs, against the truth.

1. A pool-managerd with a pool on each GPU; its snapshot beside `nvidia-smi --query-gpu`.
2. Memory allocated through the CUDA driver arrives in a snapshot within two seconds.
3. A pool with an engine on the GPU, where a llama-server that can use one is on PATH.

Writes a dated report under docs/hardware. Exit code: 0 all held, 1 something did not, 2 no GPU.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from pool_managerd.devices.nvml import NvmlDevices
from pool_managerd.errors import DevicesUnavailableError
from tests.gpu import engine, report, smi

START_TIMEOUT_S = 120.0
ARRIVAL_BAR_S = 2.0
ARRIVAL_TIMEOUT_S = 20.0
SETTLE_S = 2.5
ALLOCATED_BYTES_MAX = 2 << 30
ROOT = Path(__file__).parents[2]

HEAD = """orchestrator = "127.0.0.1:1"
listen = "127.0.0.1:0"
host_id = "gpu-check"
"""


@dataclass
class Watched:
    """Snapshots of a pool-managerd by pool, the latest of each."""

    latest: dict[str, snapshot_pb2.PoolSnapshot] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    ended: str = ""

    def until(
        self, condition: Callable[[dict[str, snapshot_pb2.PoolSnapshot]], bool], timeout_s: float
    ) -> bool:
        """Waits until the latest snapshots satisfy `condition`; False when the time is up."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or condition(self.latest), timeout_s)
            return condition(self.latest)


@contextmanager
def pool_managerd(pools: str) -> Iterator[Watched]:
    """A pool-managerd with these `[[pools]]`; ended with the block.

    Raises:
        RuntimeError: with its own words, when it cannot start.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pool-managerd.toml")
        path.write_text(HEAD + pools, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "pool_managerd", "--config", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        watched = Watched()
        watcher = threading.Thread(target=_watch, args=(process, watched), daemon=True)
        watcher.start()
        try:
            if not watched.until(bool, START_TIMEOUT_S):
                raise RuntimeError(watched.ended or "pool-managerd sent no snapshot")
            yield watched
        finally:
            process.kill()
            process.wait()
            watcher.join(5.0)


def _watch(process: subprocess.Popen[str], watched: Watched) -> None:
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if '"listening"' in line:
                _follow(line.partition('"address": "')[2].partition('"')[0], watched)
    except grpc.RpcError:
        said.append("its inspection stream ended")
    with watched.changed:
        watched.ended = said[-1].strip() if said else "it ended without a word"
        watched.changed.notify_all()


def _follow(address: str, watched: Watched) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = PoolManagerServiceStub(channel)
        for answer in stub.WatchSnapshots(manager_pb2.WatchSnapshotsRequest()):
            with watched.changed:
                watched.latest.update({pool.pool_id: pool for pool in answer.pools})
                watched.changed.notify_all()


def mock_pool(pool_id: str, device: str) -> str:
    """A pool that takes nothing of its device."""
    return (
        f'[[pools]]\npool_id = "{pool_id}"\ndevices = ["{device}"]\nengine = {{ kind = "mock" }}\n'
    )


async def device_ids() -> list[str]:
    """The devices of this host.

    Raises:
        DevicesUnavailableError: with the sentence that says why there are none.
    """
    source = NvmlDevices()
    await source.start(lambda _device_id, _sentence: None, lambda: None)
    found = [device.device_id for device in source.devices()]
    await source.stop()
    return found


def arrival(device: snapshot_pb2.Device, pool_id: str, watched: Watched) -> report.Arrival:
    """Allocates on the device and measures when a snapshot shows it."""
    if not device.HasField("memory_free_bytes"):
        return report.Arrival(0, None, "its memory is not reported")
    size = min(ALLOCATED_BYTES_MAX, device.memory_free_bytes // 4)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.allocate", str(size)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": device.device_id},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        return _measured(child, watched, pool_id, size)
    finally:
        child.kill()
        child.communicate()


def _measured(
    child: subprocess.Popen[str], watched: Watched, pool_id: str, size: int
) -> report.Arrival:
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None

    def used() -> int:
        return watched.latest[pool_id].devices[0].memory_used_bytes

    if child.stdout.readline() != "ready\n":
        return report.Arrival(size, None, child.stderr.read().strip())
    # So long after, what the context took is in.
    time.sleep(SETTLE_S)
    before = used()
    child.stdin.write("now\n")
    child.stdin.flush()
    if child.stdout.readline() != "allocated\n":
        return report.Arrival(size, None, child.stderr.read().strip())
    began_s = time.monotonic()
    # Nine tenths: other programs may give memory back meanwhile.
    arrived = watched.until(lambda _: used() - before >= size * 0.9, ARRIVAL_TIMEOUT_S)
    if not arrived:
        return report.Arrival(size, None, f"nothing was seen within {ARRIVAL_TIMEOUT_S:g} s")
    return report.Arrival(size, time.monotonic() - began_s, "")


def check(ids: list[str]) -> list[report.Checked]:
    """Compares every device and allocates on it, one pool on each."""
    pools = {f"device-{number}": device_id for number, device_id in enumerate(ids)}
    with pool_managerd("".join(mock_pool(*pool) for pool in pools.items())) as watched:
        watched.until(lambda latest: latest.keys() == pools.keys(), START_TIMEOUT_S)
        told = smi.query()
        found = []
        for pool_id in pools:
            (device,) = watched.latest[pool_id].devices
            known = told.get(device.device_id)
            compared = [] if known is None else smi.compare(device, known)
            found.append(report.Checked(device, compared, arrival(device, pool_id, watched)))
        return found


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "hardware")
    options = parser.parse_args(argv)
    try:
        ids = asyncio.run(device_ids())
    except DevicesUnavailableError as error:
        sys.stderr.write(f"gpu-check: no NVIDIA GPU that could be checked: {error}\n")
        return 2
    checked = check(ids)
    ran = engine.run(checked[0].device, pool_managerd)
    path = report.write(options.folder, checked, ran, ARRIVAL_BAR_S)
    sys.stdout.write(path.read_text(encoding="utf-8") + f"\nwritten to {path}\n")
    return 0 if report.held(checked, ran, ARRIVAL_BAR_S) else 1


if __name__ == "__main__":
    sys.exit(main())
