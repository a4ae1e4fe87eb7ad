"""The real pool-managerd on a scripted driver: from the GPU to the snapshot and back."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from llamaorch.pool.v1 import snapshot_pb2 as pb
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from tests.nvml_stub.stub import GIB, NO_COMPILER, Gpu, StubDriver, build, compiler, h200

INTERVAL_MS = 50
A, B = h200("a"), h200("b")
BACKOFF_MS = 20

CONFIG = """
orchestrator = "127.0.0.1:1"
listen = "127.0.0.1:{port}"
device_interval_ms = {interval_ms}
report_interval_ms = {report_ms}
supervision = {{ backoff = {{ initial_ms = {backoff_ms}, cap_ms = {backoff_ms} }} }}
"""
POOL = """
[[pools]]
pool_id = "{pool_id}"
devices = {devices}
engine = {{ kind = "mock", slots = 2 }}
"""


class Daemon:
    """A pool-managerd in a process of its own, watched through its inspection service."""

    def __init__(
        self,
        driver: StubDriver,
        folder: Path,
        pools: dict[str, list[str]],
        report_ms: int = INTERVAL_MS,
    ) -> None:
        path = folder / "pool-managerd.toml"
        head = CONFIG.format(
            port=0, interval_ms=INTERVAL_MS, report_ms=report_ms, backoff_ms=BACKOFF_MS
        )
        tables = [POOL.format(pool_id=p, devices=str(d)) for p, d in pools.items()]
        path.write_text(head + "".join(tables), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pool_managerd", "--config", str(path)],
            env=driver.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def watch(self) -> Iterator[pb.PoolSnapshot]:
        """Snapshots as they come, until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if '"listening"' in line:
                address = line.partition('"address": "')[2].partition('"')[0]
                break
        with grpc.insecure_channel(address) as channel:
            stub = PoolManagerServiceStub(channel)
            for answer in stub.WatchSnapshots(manager_pb2.WatchSnapshotsRequest()):
                yield from answer.pools

    def stop(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> StubDriver:
    """A scripted driver."""
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    folder = tmp_path_factory.mktemp("nvml")
    return StubDriver(folder, build(folder / "lib"))


def until(
    snapshots: Iterator[pb.PoolSnapshot], condition: Callable[[pb.PoolSnapshot], bool]
) -> pb.PoolSnapshot:
    """The next snapshot that satisfies `condition`."""
    return next(snapshot for snapshot in snapshots if condition(snapshot))


def lose_and_find_again(
    driver: StubDriver, one: Callable[[Callable[[pb.PoolSnapshot], bool]], pb.PoolSnapshot]
) -> None:
    """The GPU of a pool is lost, comes back, and reports a critical error."""
    driver.set(A, B.having(lost="15"))
    lost = one(lambda s: s.state == pb.POOL_STATE_UNREADY)
    held = one(lambda s: s.devices[0].health == pb.DEVICE_HEALTH_LOST)
    later = one(lambda s: s.version >= lost.version + 8)
    assert {s.state_reason for s in (lost, later)} == {pb.POOL_STATE_REASON_DEVICE_ERROR}
    assert "fell off the bus" in lost.state_detail
    assert not held.HasField("vram_free_bytes")
    assert later.replica_id == lost.replica_id, "no engine was started on the lost GPU"

    driver.set(A, B)
    back = one(lambda s: s.state == pb.POOL_STATE_READY)
    assert back.replica_id != lost.replica_id
    assert back.devices[0].health == pb.DEVICE_HEALTH_OK

    driver.set(A, B, head=("xid 1 GPU-b 79",))
    failed = one(lambda s: s.state == pb.POOL_STATE_UNREADY)
    assert failed.state_reason == pb.POOL_STATE_REASON_DEVICE_ERROR
    assert "XID 79" in failed.state_detail
    well = one(lambda s: s.state == pb.POOL_STATE_READY)
    assert well.devices[0].last_xid == 79


def test_a_gpu_from_the_first_snapshot_to_its_loss_and_return(
    driver: StubDriver, tmp_path: Path
) -> None:
    """Facts arrive, throttling scales the speed, and a lost GPU stops its pool until it is back.

    ORCH-3038, ORCH-3040, ORCH-3011. The other pool serves on.
    """
    driver.set(A, B)
    daemon = Daemon(driver, tmp_path, {"one": ["1"], "two": ["GPU-a"]})
    try:
        snapshots = daemon.watch()

        def one(condition: Callable[[pb.PoolSnapshot], bool]) -> pb.PoolSnapshot:
            return until(snapshots, lambda s: s.pool_id == "one" and condition(s))

        ready = one(lambda s: s.state == pb.POOL_STATE_READY)
        (device,) = ready.devices
        assert (device.device_id, device.index) == ("GPU-b", 1)
        assert device.health == pb.DEVICE_HEALTH_OK
        assert (device.temperature_celsius, device.ecc_uncorrected_aggregate) == (61, 7)
        assert (ready.compute_capability, ready.vram_total_bytes) == ("9.0", 140 * GIB)
        assert not ready.HasField("perf_scale")

        driver.set(A, B.having(memory=f"{140 * GIB} 77 3 {GIB}"))
        assert one(lambda s: s.vram_free_bytes == 77).devices[0].memory_used_bytes == 3

        driver.set(A, B.having(reasons="64", clocks="1000 2600"))
        slow = one(lambda s: s.HasField("perf_scale"))
        assert (slow.perf_scale, slow.devices[0].clock_event_reasons) == (0.5, 64)

        lose_and_find_again(driver, one)
        other = until(snapshots, lambda s: s.pool_id == "two")
        assert other.version > 1
        assert other.state == pb.POOL_STATE_READY
    finally:
        daemon.stop()


def test_a_gpu_that_needs_a_reset_at_the_start_holds_its_pool_back(
    driver: StubDriver, tmp_path: Path
) -> None:
    """The engine is first started once the GPU was reset. What changes is reported as it is read.

    The report interval is so long that nothing would come by it.
    """
    driver.set(A.having(recovery="1"), B)
    daemon = Daemon(driver, tmp_path, {"both": []}, report_ms=3_600_000)
    try:
        snapshots = daemon.watch()

        held = until(snapshots, lambda s: s.state == pb.POOL_STATE_UNREADY)
        driver.set(A, B)
        ready = until(snapshots, lambda s: s.state == pb.POOL_STATE_READY)

        driver.set(A, B.having(memory=f"{140 * GIB} 77 3 {GIB}"))
        full = until(snapshots, lambda s: s.devices[1].memory_free_bytes == 77)

        assert full.vram_free_bytes == 100 * GIB + 77
        assert held.state_reason == pb.POOL_STATE_REASON_DEVICE_ERROR
        assert "nvidia-smi --gpu-reset" in held.state_detail
        assert [d.device_id for d in ready.devices] == ["GPU-a", "GPU-b"]
        assert ready.vram_total_bytes == 280 * GIB
    finally:
        daemon.stop()


def test_a_gpu_that_is_not_there_at_the_start_holds_its_own_pool_back(
    driver: StubDriver, tmp_path: Path
) -> None:
    """It fell off the bus before a restart: the other pools of the host serve meanwhile.

    ORCH-3038. It is found by its id once it is back.
    """
    driver.set(B)
    daemon = Daemon(driver, tmp_path, {"one": ["GPU-a"], "two": ["GPU-b"]})
    try:
        snapshots = daemon.watch()

        held = until(snapshots, lambda s: s.pool_id == "one" and s.state == pb.POOL_STATE_UNREADY)
        other = until(snapshots, lambda s: s.pool_id == "two" and s.state == pb.POOL_STATE_READY)
        driver.set(A, B)
        ready = until(snapshots, lambda s: s.pool_id == "one" and s.state == pb.POOL_STATE_READY)

        assert held.state_reason == pb.POOL_STATE_REASON_DEVICE_ERROR
        assert held.state_detail == (
            "there is no device GPU-a here now: it is lost, or its id is wrong; "
            "this host has: GPU-b"
        )
        assert other.vram_total_bytes == ready.vram_total_bytes == 140 * GIB
        assert ready.devices[0].name == "NVIDIA H200"
    finally:
        daemon.stop()


@pytest.mark.parametrize(
    ("head", "code", "said"),
    [
        (("fail nvmlInitWithFlags 9",), 1, ["the NVIDIA driver is not loaded"]),
        (("fail nvmlInitWithFlags 18",), 1, ["upgraded, but the old one is still loaded"]),
        (
            (),
            2,
            [
                "pools.p.devices: no device 7; this host has: MIG-1 (0:0), GPU-b (1)",
                "pools.q.devices: GPU 0 is cut into MIG slices: name one of MIG-1 (0:0)",
            ],
        ),
    ],
)
def test_what_cannot_work_ends_the_start_with_a_sentence(
    driver: StubDriver, tmp_path: Path, head: tuple[str, ...], code: int, said: list[str]
) -> None:
    """A line on stderr for each problem. ORCH-3003.

    A driver may come a moment later, as after a reboot: systemd tries that again, not a mistake of
    the configuration.
    """
    part = Gpu("MIG-1", {"memory": "8000000 8000000 0 0"})
    driver.set(replace(A.having(mig_mode="1"), slices=(part,)), B, head=head)

    daemon = Daemon(driver, tmp_path, {"p": ["7"], "q": ["0"]})
    _, errors = daemon.process.communicate(timeout=30)

    assert daemon.process.returncode == code
    for line, sentence in zip(errors.splitlines(), said, strict=True):
        assert sentence in line
