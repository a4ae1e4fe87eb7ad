"""How often the driver is asked: each call takes its lock."""

from collections import Counter

from pool_managerd.devices.nvml_watch import THOROUGH_EVERY
from tests.integration.devices.conftest import Host
from tests.nvml_stub.stub import Gpu, h200

READINGS = 4 * THOROUGH_EVERY
FAST = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetUtilizationRates")
SLOW = (
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetFieldValues",
)
ONCE = ("nvmlDeviceGetName", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMaxClockInfo")
NEVER = ("nvmlDeviceGetFanSpeed", "nvmlDeviceGetComputeRunningProcesses_v3")


def calls_of(host: Host, *gpus: Gpu) -> Counter[str]:
    """The calls of so many readings and a few more."""
    host.driver.set(*gpus)
    host.start()
    host.readings(READINGS)
    return host.driver.calls()


def test_memory_and_utilisation_are_read_each_time_and_the_rest_rarely(host: Host) -> None:
    """Slow fields come with every fifth reading, what never changes once, the fan never."""
    calls = calls_of(host, h200("a"), h200("b"))

    readings = calls[FAST[0]] // 2
    assert readings >= READINGS
    assert abs(calls[FAST[1]] - calls[FAST[0]]) <= 1
    for name in SLOW:
        assert abs(calls[name] / 2 - readings / THOROUGH_EVERY) <= 2
    assert {calls[name] for name in ONCE} == {2}
    assert {calls[name] for name in NEVER} == {0}


def test_what_is_not_supported_is_not_asked_for_again(host: Host) -> None:
    """Also where the older function is asked in its place: one useless call each, at the start."""
    calls = calls_of(host, Gpu("GPU-bare"))

    for name in (*FAST, "nvmlDeviceGetMemoryInfo", *SLOW, "nvmlDeviceGetTemperature"):
        expected = calls["nvmlDeviceGetFieldValues"] if name == "nvmlDeviceGetFieldValues" else 1
        assert calls[name] == expected, name


def test_slow_fields_of_a_gpu_in_slices_are_read_once_for_all_of_them(host: Host) -> None:
    """Only memory belongs to each slice."""
    slices = tuple(Gpu(f"MIG-{n}", {"memory": "8000000 8000000 0 0"}) for n in range(7))
    gpu = h200().having(mig_mode="1")
    calls = calls_of(host, Gpu(gpu.uuid, gpu.lines, slices))

    readings = calls[FAST[0]] // 7
    assert calls["nvmlDeviceGetPowerUsage"] <= readings / THOROUGH_EVERY + 2
    assert calls["nvmlDeviceGetUtilizationRates"] == 7, "asked once, not supported"
