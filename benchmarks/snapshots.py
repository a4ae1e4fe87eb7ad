"""What reading devices and reporting snapshots costs pool-managerd: CPU per second, by GPUs.

    python -m benchmarks.snapshots [--gpus 8,64] [--rounds 7] [--readings 200]

The GPUs are those of a scripted libnvidia-ml.so.1 (tests/nvml_stub), called through the real
binding, so the driver's own time is not in the figures: see benchmarks/README.md. Per reading, as
once a second in production, slow fields with every fifth: all devices are read, a pool for each GPU
is reported, and the report is encoded. The peer makes the same calls of the binding and does
nothing with the answers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from benchmarks.machine import run_on_machine
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from pool_managerd.attempts.executor import Executor
from pool_managerd.clock import SystemClock
from pool_managerd.config.schema import PoolTable
from pool_managerd.config.supervision import SupervisionTable
from pool_managerd.core.device import Device
from pool_managerd.core.device_book import DeviceBook
from pool_managerd.core.store import AttemptStore, StoreLimits
from pool_managerd.devices.nvml_reader import NvmlReader
from pool_managerd.devices.nvml_watch import THOROUGH_EVERY
from pool_managerd.factory import make_engine
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.pools.incarnation import PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.snapshots import HostState, SnapshotBuilder, by_device_id
from pool_managerd.telemetry import Telemetry
from tests.nvml_stub.stub import StubDriver, build, h200

CHILD = "--in-child"
DEFAULT_GPUS = "8,64"


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one reading in milliseconds, which is per second in production."""

    read_ms: float
    build_ms: float
    encode_ms: float
    bare_ms: float


class _Latest:
    """The devices of the last reading. Satisfies `DeviceSource` for the builder."""

    def __init__(self) -> None:
        self.latest: tuple[Device, ...] = ()

    async def start(self, on_fault: object, on_change: object) -> None:
        """Nothing to start."""

    def devices(self) -> tuple[Device, ...]:
        """See `DeviceSource.devices`."""
        return self.latest

    def read_at_ms(self) -> int:
        """See `DeviceSource.read_at_ms`."""
        return 0

    async def stop(self) -> None:
        """Nothing to stop."""


class Reading:
    """What pool-managerd does each second with the devices of a host."""

    def __init__(self) -> None:
        self._reader, self._book, self._source = NvmlReader(), DeviceBook(), _Latest()
        self._count = 0
        self._reader.open()
        self.read()
        self._builder = _builder(self._source)
        self.encoded_bytes = 0

    def read(self) -> None:
        """Reads all devices."""
        self._book.take(self._reader.read(thorough=self._count % THOROUGH_EVERY == 0))
        self._count += 1
        self._source.latest = self._book.devices()

    def build(self) -> registry_pb2.ReportSnapshotsRequest:
        """A report of all pools."""
        return registry_pb2.ReportSnapshotsRequest(host_id="h", pools=self._builder.all())

    def encode(self, report: registry_pb2.ReportSnapshotsRequest) -> None:
        """The bytes that are sent."""
        self.encoded_bytes = len(report.SerializeToString())


def _builder(source: _Latest) -> SnapshotBuilder:
    deps = PoolDeps(
        clock=SystemClock(),
        feed=ChangeFeed(1),
        telemetry=Telemetry(),
        spawn=_never,
        make_engine=make_engine,
        random_hex=lambda digits: "0" * digits,
        jitter=lambda: 0.0,
        supervision=SupervisionTable(),
    )
    executor = Executor(AttemptStore(StoreLimits(1 << 20, 1 << 20, 16)), deps)
    pools = []
    for number, device in enumerate(source.devices()):
        engine = {"kind": "mock"}
        table = {"pool_id": f"pool-{number}", "devices": [device.device_id], "engine": engine}
        known = by_device_id(PoolTable.model_validate(table), source.devices())
        pools.append(Pool(known, deps, executor))
    return SnapshotBuilder(HostState("h", "b"), pools, executor, source, SystemClock())


def _never(work: object) -> Any:
    raise AssertionError("no engine is started here")


class Bare:
    """The same calls of the binding, and nothing else."""

    def __init__(self) -> None:
        count = pynvml.nvmlDeviceGetCount()
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        self._count = 0

    def read(self) -> None:
        """One reading of all devices."""
        thorough, self._count = self._count % THOROUGH_EVERY == 0, self._count + 1
        for handle in self._handles:
            if thorough:
                self._slow(handle)
            pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            pynvml.nvmlDeviceGetUtilizationRates(handle)

    @staticmethod
    def _slow(handle: Any) -> None:
        pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
        pynvml.nvmlDeviceGetPowerUsage(handle)
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        for counter in (pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC):
            kind = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
            pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter)
        pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])


def _ms(work: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) * 1000 / times


def measure(rounds: int, readings: int) -> tuple[list[Cost], int]:
    """Costs of each round, both sides in turns, and the bytes of one report."""
    ours, bare = Reading(), Bare()
    report = ours.build()
    costs = [
        Cost(
            read_ms=_ms(ours.read, readings),
            build_ms=_ms(ours.build, readings),
            encode_ms=_ms(lambda: ours.encode(report), readings),
            bare_ms=_ms(bare.read, readings),
        )
        for _ in range(rounds)
    ]
    return costs, ours.encoded_bytes


def run(folder: Path, gpus: int, rounds: int, readings: int) -> tuple[list[Cost], int]:
    """Measures in a process of its own, whose NVML has so many GPUs."""
    driver = StubDriver(folder, folder)
    driver.set(*(h200(f"{number:02d}", number) for number in range(gpus)))
    environment = dict(driver.environment)
    # What the tests want of the stub, and what costs it time.
    for name in ("NVML_STUB_CALLS", "NVML_STUB_ALLOCATED"):
        del environment[name]
    command = [sys.executable, "-m", "benchmarks.snapshots", CHILD]
    done = subprocess.run(  # noqa: S603 - this module itself
        [*command, "--rounds", str(rounds), "--readings", str(readings)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    return [Cost(*cost) for cost in answer["costs"]], answer["bytes"]


def table(gpus: int, costs: Sequence[Cost], size: int) -> str:
    """One line for the best round and one for the median."""
    lines = []
    for name, pick in (("best", min), ("median", statistics.median)):
        read, build_, encode, bare = (
            pick([getattr(cost, part) for cost in costs])
            for part in ("read_ms", "build_ms", "encode_ms", "bare_ms")
        )
        total = read + build_ + encode
        lines.append(
            f"{gpus:>5} {name:<7}{read:>8.2f}{build_:>8.2f}{encode:>8.2f}{total:>8.2f}{bare:>8.2f}"
            f"{read / bare:>8.1f}{total / bare:>8.1f}{size:>10,}"
        )
    return "\n".join(lines)


HEADER = (
    "CPU of one reading (= per second) in ms; bare: the same calls of the binding alone\n"
    " GPUs           read   build  encode     all    bare  read/b   all/b     bytes"
)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", default=DEFAULT_GPUS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--readings", type=int, default=200)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.in_child:
        costs, size = measure(options.rounds, options.readings)
        rows = [(c.read_ms, c.build_ms, c.encode_ms, c.bare_ms) for c in costs]
        print(json.dumps({"costs": rows, "bytes": size}))
        return 0
    with run_on_machine(), tempfile.TemporaryDirectory() as name:
        folder = build(Path(name))
        print(HEADER)
        for gpus in map(int, options.gpus.split(",")):
            print(table(gpus, *run(folder, gpus, options.rounds, options.readings)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
