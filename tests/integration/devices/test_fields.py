"""What is read of each kind of device, through the real binding. ORCH-1103."""

from dataclasses import replace

import psutil
import pytest

from tests.integration.devices.conftest import Facts, Host
from tests.nvml_stub.stub import GIB, Gpu, h200

NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 3, 4, 999


def test_everything_that_a_gpu_reports_is_told_by_its_uuid(host: Host) -> None:
    """Each field comes from the function that stands for it, in the unit of its name."""
    host.driver.set(h200())

    (device,) = host.read()

    assert device == {
        "device_id": "GPU-a",
        "kind": "gpu",
        "name": "NVIDIA H200",
        "index": 0,
        "parent_device_id": None,
        "slice_index": None,
        "compute_capability": "9.0",
        "driver_version": "580.65.06",
        "cuda_driver_version": "13.0",
        "memory_total_bytes": 140 * GIB,
        "memory_free_bytes": 100 * GIB,
        "memory_used_bytes": 39 * GIB,
        "memory_reserved_bytes": GIB,
        "memory_is_host_memory": None,
        "utilization_ratio": 0.5,
        "temperature_celsius": 61,
        "power_milliwatts": 350_000,
        "sm_clock_mhz": 1500,
        "max_sm_clock_mhz": 2000,
        "memory_clock_mhz": 2600,
        "clock_event_reasons": 0,
        "ecc_uncorrected_total": 1,
        "ecc_uncorrected_aggregate": 7,
        "last_xid": None,
        "mig_enabled": False,
        "health": "ok",
        "health_detail": "",
    }


@pytest.mark.parametrize("capability", ["-1 0", "99999 0", "9 -4"])
def test_a_capability_that_cannot_be_is_absent(host: Host, capability: str) -> None:
    """No message could carry it, so that its pool would get no jobs."""
    host.driver.set(h200().having(capability=capability))

    (device,) = host.read()

    assert device["compute_capability"] is None
    assert device["name"] == "NVIDIA H200"


def test_what_is_not_supported_is_absent_and_never_0(host: Host) -> None:
    """A GPU that only has a UUID is still a device."""
    host.driver.head = ()
    host.driver.set(Gpu("GPU-bare"))

    (device,) = host.read()
    host.driver.head = ("driver 580.65.06", "cuda 13000")

    told = {key: value for key, value in device.items() if value is not None}
    assert told == {
        "device_id": "GPU-bare",
        "kind": "gpu",
        "index": 0,
        "health": "ok",
        "health_detail": "",
    }


def test_each_function_may_be_missing_alone(host: Host) -> None:
    """Whatever one function answers, the fields of all others are told."""
    fields = {
        "nvmlDeviceGetUtilizationRates": ["utilization_ratio"],
        "nvmlDeviceGetPowerUsage": ["power_milliwatts"],
        "nvmlDeviceGetClockInfo": ["sm_clock_mhz", "memory_clock_mhz"],
        "nvmlDeviceGetMaxClockInfo": ["max_sm_clock_mhz"],
        "nvmlDeviceGetTotalEccErrors": ["ecc_uncorrected_total", "ecc_uncorrected_aggregate"],
        "nvmlDeviceGetName": ["name"],
        "nvmlDeviceGetCudaComputeCapability": ["compute_capability"],
        "nvmlDeviceGetMigMode": ["mig_enabled"],
    }
    codes = (NOT_SUPPORTED, NO_PERMISSION, UNKNOWN)
    gpus = [
        h200(f"{number}-{code}").failing(function, code)
        for number, function in enumerate(fields)
        for code in codes
    ]
    host.driver.set(h200("whole"), *gpus)

    whole, *devices = host.read()

    different = {"device_id", "index"}
    for device, absent in zip(devices, [f for f in fields.values() for _ in codes], strict=True):
        expected = {key: None if key in absent else value for key, value in whole.items()}
        told = {key: value for key, value in device.items() if key not in different}
        assert told == {key: value for key, value in expected.items() if key not in different}


def test_a_younger_function_that_is_not_supported_gives_way_to_the_older(host: Host) -> None:
    """Temperature, clock reasons and memory have an older name each."""
    gpu = h200().failing("nvmlDeviceGetTemperatureV", NOT_SUPPORTED)
    gpu = gpu.failing("nvmlDeviceGetCurrentClocksEventReasons", NOT_SUPPORTED)
    gpu = gpu.failing("nvmlDeviceGetMemoryInfo_v2", NOT_SUPPORTED).having(reasons="4")
    host.driver.set(gpu)

    (device,) = host.read()

    assert (device["temperature_celsius"], device["clock_event_reasons"]) == (61, 4)
    assert device["memory_free_bytes"] == 100 * GIB
    assert device["memory_reserved_bytes"] is None
    assert device["memory_used_bytes"] == 40 * GIB, "the first version counts the reserve as used"


def test_a_driver_without_the_younger_functions_is_read_by_the_older(old_host: Host) -> None:
    """The symbols are not in the library: FUNCTION_NOT_FOUND, told to nobody and never again."""
    old_host.driver.set(h200())

    old_host.start()
    old_host.readings(10)
    (device,) = old_host.until(lambda _devices: True)
    old_host.stop()

    assert (device["temperature_celsius"], device["clock_event_reasons"]) == (61, 0)
    assert (device["memory_used_bytes"], device["memory_reserved_bytes"]) == (40 * GIB, None)
    assert device["health"] == "ok"


def test_several_gpus_are_told_apart_by_uuid_whatever_their_order(host: Host) -> None:
    """The index is where the driver lists them at the moment."""
    host.driver.set(h200("b", 2), h200("a", 1))

    devices = host.read()

    assert [(d["index"], d["device_id"]) for d in devices] == [(0, "GPU-b"), (1, "GPU-a")]
    assert [d["memory_free_bytes"] - 100 * GIB for d in devices] == [2, 1]


def test_a_gpu_in_slices_is_shown_as_its_slices(host: Host) -> None:
    """Memory is each slice's own; the GPU's clocks and temperature are told of each."""
    small = Gpu(
        "MIG-1", {"name": "NVIDIA H200 MIG 1g.18gb", "memory": "18000000 9000000 8000000 0"}
    )
    large = Gpu("MIG-3", {"memory": "71000000 71000000 0 0"})
    cut = replace(h200("cut").having(mig_mode="1"), slices=(small, None, large))
    host.driver.set(cut, h200("whole"))

    one, two, whole = host.read()

    assert (one["device_id"], one["kind"], one["slice_index"]) == ("MIG-1", "mig", 0)
    assert (two["device_id"], two["slice_index"], two["name"]) == ("MIG-3", 2, "NVIDIA H200")
    assert {d["parent_device_id"] for d in (one, two)} == {"GPU-cut"}
    assert [d["memory_total_bytes"] for d in (one, two)] == [18_000_000, 71_000_000]
    assert one["utilization_ratio"] is None, "not supported in slices"
    assert (one["temperature_celsius"], one["sm_clock_mhz"]) == (61, 1500)
    assert (one["compute_capability"], one["index"], one["mig_enabled"]) == ("9.0", 0, True)
    assert (whole["device_id"], whole["kind"]) == ("GPU-whole", "gpu")


def test_a_gpu_with_mig_but_without_slices_is_shown_itself(host: Host) -> None:
    """There is nothing else to show, and the mode is told."""
    host.driver.set(h200().having(mig_mode="1"))

    (device,) = host.read()

    assert (device["kind"], device["mig_enabled"]) == ("gpu", True)


def shares_memory(device: Facts) -> bool:
    """True when the device tells of the host's memory."""
    host = psutil.virtual_memory()
    return (
        device["memory_is_host_memory"] is True
        and device["memory_total_bytes"] == host.total
        and device["memory_free_bytes"] + device["memory_used_bytes"] == host.total
        and device["memory_reserved_bytes"] is None
    )


def test_an_integrated_gpu_tells_of_the_memory_that_it_shares(host: Host) -> None:
    """GB10: NVML reports no memory, so what the host has available counts, as one pool."""
    host.driver.set(h200().having(name="NVIDIA GB10", memory=None))

    (device,) = host.read()

    assert shares_memory(device)
    # Available, not free: the page cache of this machine counts.
    assert device["memory_free_bytes"] >= psutil.virtual_memory().free // 2
    assert device["temperature_celsius"] == 61


def test_any_other_gpu_without_memory_tells_none(host: Host) -> None:
    """Only a device known to be integrated shares the host's memory."""
    host.driver.set(h200().having(memory=None))

    (device,) = host.read()

    assert device["memory_total_bytes"] is None
    assert device["memory_is_host_memory"] is None


@pytest.mark.parametrize(
    "garbage", [None, "0 0 0 0", "4096 1152921504606846976 3 0", f"{1 << 62} 1 1 0"]
)
def test_a_jetson_tells_nothing_that_cannot_be_true(host: Host, garbage: str | None) -> None:
    """Nearly nothing is supported, and some of the rest is garbage reported as success."""
    jetson = Gpu(
        "GPU-orin",
        {
            "name": "Orin (nvgpu)",
            "utilization": "4294967295",
            "temperature": "4000000000",
            "power": "4294967295",
            "clocks": "4294967295 4294967295",
            "ecc": f"{(1 << 64) - 1} {(1 << 64) - 1}",
        },
    ).having(memory=garbage)
    host.driver.set(jetson)

    (device,) = host.read()

    assert shares_memory(device)
    told = {k for k, v in device.items() if v is not None and not k.startswith("memory_")}
    assert told == {
        "device_id",
        "kind",
        "name",
        "index",
        "driver_version",
        "cuda_driver_version",
        "health",
        "health_detail",
    }
