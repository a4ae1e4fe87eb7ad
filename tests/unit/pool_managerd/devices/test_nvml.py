"""The NVML reader against a scripted binding, and without a driver."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.devices.nvml import NvmlDevices
from pool_managerd.errors import DevicesUnavailableError

WAIT_S = 10.0


class Binding:
    """The functions of `pynvml` that the reader calls, over a table of GPUs.

    A function that is not in `answers` raises NOT_SUPPORTED, as a driver does.
    """

    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM
    NVML_CLOCK_MEM = pynvml.NVML_CLOCK_MEM
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    NVML_VOLATILE_ECC = pynvml.NVML_VOLATILE_ECC
    nvmlMemory_v2 = pynvml.nvmlMemory_v2  # noqa: N815 - the binding's name
    nvmlEventTypeXidCriticalError = pynvml.nvmlEventTypeXidCriticalError  # noqa: N815 - the same

    def __init__(self, answers: dict[str, object], missing: frozenset[str] = frozenset()) -> None:
        self.answers = answers
        self.missing = missing
        self.threads: set[int] = set()

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name in self.missing or not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> object:
            self.threads.add(threading.get_ident())
            answer = self.answers.get(name)
            if name not in self.answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer(*args, **kwargs) if callable(answer) else answer

        return call


def one_gpu(**changes: object) -> dict[str, object]:
    """A driver with one GPU that reports memory and utilisation."""
    memory = SimpleNamespace(total=24_000, free=20_000, used=3_000, reserved=1_000)
    return {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "580.1",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle-{index}",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": b"NVIDIA GeForce RTX 3090",
        "nvmlDeviceGetCudaComputeCapability": (8, 6),
        "nvmlDeviceGetMemoryInfo": lambda _handle, version=None: memory,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=50, memory=10),
        **changes,
    }


class Readings(NvmlDevices):
    """A source whose readings after the first can be awaited."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding, interval_ms=10)
        self.queue: asyncio.Queue[tuple[Device, ...]] = asyncio.Queue()

    def _publish(self, devices: tuple[Device, ...]) -> None:
        super()._publish(devices)
        self.queue.put_nowait(devices)

    async def until(self, condition: Callable[[Device], bool]) -> None:
        """Waits for a reading in which the first device satisfies `condition`."""
        async with asyncio.timeout(WAIT_S):
            while not condition((await self.queue.get())[0]):
                pass


async def read_once(binding: Binding) -> NvmlDevices:
    """A source after its first reading."""
    source = NvmlDevices(binding, interval_ms=20)
    await source.start(lambda _device_id, _sentence: None)
    return source


async def test_facts_are_read_and_what_is_not_supported_is_absent() -> None:
    """One GPU by UUID; temperature, power and ECC are absent, not 0. ORCH-1103."""
    binding = Binding(one_gpu())
    source = await read_once(binding)
    await source.stop()

    (device,) = source.devices()
    assert device.device_id == "GPU-handle-0"
    assert (device.name, device.compute_capability) == ("NVIDIA GeForce RTX 3090", "8.6")
    assert (device.memory_total_bytes, device.memory_free_bytes) == (24_000, 20_000)
    assert (device.memory_reserved_bytes, device.utilization_ratio) == (1_000, 0.5)
    assert device.temperature_celsius is None
    assert device.ecc_uncorrected_total is None
    assert device.mig_enabled is None


async def test_an_old_driver_is_read_with_what_it_has() -> None:
    """Without memory v2 the first version counts; the old name of the clock reasons is tried."""

    def only_v1(_handle: object, version: object = None) -> object:
        if version is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return SimpleNamespace(total=8, free=5, used=3)

    binding = Binding(
        one_gpu(nvmlDeviceGetMemoryInfo=only_v1, nvmlDeviceGetCurrentClocksThrottleReasons=4),
        missing=frozenset({"nvmlDeviceGetCurrentClocksEventReasons"}),
    )
    source = await read_once(binding)
    await source.stop()

    (device,) = source.devices()
    assert (device.memory_free_bytes, device.memory_reserved_bytes) == (5, None)
    assert device.clock_event_reasons == 4


async def test_every_call_is_made_in_one_thread_beside_the_loop() -> None:
    """The event loop never waits for the driver."""
    binding = Binding(one_gpu())
    source = await read_once(binding)
    await source.stop()

    assert len(binding.threads) == 1
    assert threading.get_ident() not in binding.threads


async def test_a_gpu_in_slices_is_shown_as_its_slices() -> None:
    """MIG indexes that are not there are skipped; each slice has its own UUID."""

    def slice_at(parent: str, index: int) -> str:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"{parent}/mig-{index}"

    binding = Binding(
        one_gpu(
            nvmlDeviceGetMigMode=(1, 1),
            nvmlDeviceGetMaxMigDeviceCount=3,
            nvmlDeviceGetMigDeviceHandleByIndex=slice_at,
        )
    )
    source = await read_once(binding)
    await source.stop()

    assert [d.device_id for d in source.devices()] == [
        "GPU-handle-0/mig-0",
        "GPU-handle-0/mig-2",
    ]
    assert {d.kind for d in source.devices()} == {DeviceKind.MIG}


async def test_an_integrated_gpu_shows_the_memory_it_shares() -> None:
    """Where NVML reports no memory, a known integrated device shows the host's, others nothing."""
    answers = one_gpu(nvmlDeviceGetName="NVIDIA GB10")
    del answers["nvmlDeviceGetMemoryInfo"]
    source = await read_once(Binding(answers))
    await source.stop()
    other = await read_once(Binding({**answers, "nvmlDeviceGetName": "NVIDIA X"}))
    await other.stop()

    assert (source.devices()[0].memory_total_bytes or 0) > 0
    assert other.devices()[0].memory_total_bytes is None


@pytest.mark.parametrize(("xid", "is_fault"), [(79, True), (31, False)])
async def test_a_critical_xid_is_a_fault_and_every_xid_is_shown(xid: int, is_fault: bool) -> None:
    """A GPU off the bus is a fault; an application's own error is only shown. ORCH-3040."""
    events = [SimpleNamespace(device="handle-0", eventData=xid)]

    def wait(_events: object, _timeout_ms: int) -> object:
        if events:
            return events.pop()
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)

    binding = Binding(
        one_gpu(
            nvmlEventSetCreate=object(), nvmlDeviceRegisterEvents=None, nvmlEventSetWait_v2=wait
        )
    )
    faults: list[tuple[str, str]] = []
    source = Readings(binding)
    await source.start(lambda device_id, sentence: faults.append((device_id, sentence)))
    await source.until(lambda device: device.last_xid is not None)
    await source.stop()

    assert source.devices()[0].last_xid == xid
    assert faults == ([("GPU-handle-0", "the GPU reported XID 79")] if is_fault else [])


async def test_a_lost_gpu_is_a_fault_once() -> None:
    """A GPU that stops answering is reported when it happens, not each second. ORCH-3038."""
    lost = threading.Event()

    def uuid(handle: str) -> str:
        if lost.is_set():
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return f"GPU-{handle}"

    faults: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    source = Readings(Binding(one_gpu(nvmlDeviceGetUUID=uuid)))
    await source.start(lambda device_id, sentence: faults.put_nowait((device_id, sentence)))

    lost.set()
    async with asyncio.timeout(WAIT_S):
        device_id, sentence = await faults.get()
    for _ in range(source.queue.qsize() + 2):
        await source.until(lambda _device: True)
    await source.stop()

    assert device_id == "GPU-handle-0"
    assert "lost" in sentence
    assert faults.empty()


@pytest.mark.parametrize(
    "answers",
    [{"nvmlInit": None, "nvmlDeviceGetCount": 0}, {}],
    ids=["no GPU", "no driver"],
)
async def test_without_a_gpu_the_message_says_what_to_do(answers: dict[str, object]) -> None:
    """Nothing falls back to the processor silently. ORCH-3003."""
    source = NvmlDevices(Binding(answers))

    with pytest.raises(DevicesUnavailableError, match=r'driver.*devices = "cpu"'):
        await source.start(lambda _device_id, _sentence: None)

    await source.stop()


@pytest.mark.skipif(
    any(Path("/proc/driver").glob("nvidia/version")), reason="this machine has an NVIDIA driver"
)
def test_the_command_explains_a_missing_driver_and_exits_with_2(tmp_path: Path) -> None:
    """The real binding on a machine without a driver: one message on stderr, exit code 2."""
    config = tmp_path / "c.toml"
    config.write_text(
        'listen = "127.0.0.1:0"\n[[pools]]\npool_id = "p0"\nengine = { kind = "mock" }\n',
        encoding="utf-8",
    )

    done = subprocess.run(
        [sys.executable, "-m", "pool_managerd", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "libnvidia-ml.so.1" in done.stderr
    assert 'devices = "cpu"' in done.stderr
