"""Devices and drivers that fail, and that come back. ORCH-3038, ORCH-3040, ORCH-3003."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pool_managerd.core.nvml_codes import CUT
from pool_managerd.devices.nvml import STALE_MIN_MS
from tests.integration.devices.conftest import Facts, Host
from tests.nvml_stub.stub import Gpu, StubDriver, h200

UNINITIALIZED, NO_PERMISSION, DRIVER_NOT_LOADED, VERSION_MISMATCH = 1, 4, 9, 18
GPU_IS_LOST, RESET_REQUIRED, UNKNOWN = 15, 16, 999
A, B = h200("a"), h200("b")


def health(devices: list[Facts]) -> list[str]:
    """The health of each device."""
    return [device["health"] for device in devices]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (NO_PERMISSION, "may not open the NVIDIA devices: give it access to /dev/nvidia*"),
        (DRIVER_NOT_LOADED, 'driver is not loaded.*devices = "cpu"'),
        (VERSION_MISMATCH, "upgraded, but the old one is still loaded: reboot"),
        (UNKNOWN, "unknown reason.*dmesg"),
        (23, r'stub error 23.*devices = "cpu"'),
    ],
)
def test_a_driver_that_cannot_be_opened_says_what_to_do(
    new_driver: Host, code: int, said: str
) -> None:
    """Nothing falls back to the processor silently: each failure is a sentence of its own."""
    new_driver.driver.set(A, head=(f"fail nvmlInitWithFlags {code}",))

    sentence = new_driver.start()

    assert re.search(said, sentence), sentence


def test_a_driver_without_a_gpu_says_so(new_driver: Host) -> None:
    """Zero devices is not success."""
    new_driver.driver.set()

    assert "sees no GPU" in new_driver.start()


def test_a_gpu_without_access_does_not_hide_the_others(host: Host) -> None:
    """A GPU whose handle is refused is skipped; alone, it is the reason that is told."""
    denied = h200("denied").failing("nvmlDeviceGetHandleByIndex_v2", NO_PERMISSION)
    host.driver.set(denied, A)

    assert host.start() == "started"
    assert [d["device_id"] for d in host.ask()] == ["GPU-a"]

    host.stop()
    host.driver.set(denied)
    assert "may not open" in host.start()


@pytest.mark.skipif(
    any(Path("/proc/driver").glob("nvidia/version")), reason="this machine has an NVIDIA driver"
)
def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    """The real binding on a machine without a driver."""
    host = Host(StubDriver(tmp_path, tmp_path), {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})

    sentence = host.start()
    host.close()

    assert "libnvidia-ml.so.1 was not found: install the NVIDIA driver" in sentence
    assert 'devices = "cpu"' in sentence


@pytest.mark.parametrize(
    ("code", "named"), [(GPU_IS_LOST, "lost"), (RESET_REQUIRED, "reset_required")]
)
def test_a_gpu_that_goes_is_told_once_and_again_when_it_is_back(
    host: Host, code: int, named: str
) -> None:
    """The other GPU is read on; of the lost one only what is still true is told."""
    host.driver.set(A, B)
    host.start()

    host.driver.set(A.having(lost=str(code)), B)
    gone = host.until(lambda devices: devices[0]["health"] == named)
    device_id, sentence = host.until_fault(lambda _id, _sentence: True)
    host.readings(5)
    host.driver.set(A, B)
    host.until_fault(lambda _id, sentence: not sentence)
    back = host.until(lambda _devices: True)

    assert device_id == "GPU-a"
    assert sentence == gone[0]["health_detail"] != ""
    assert gone[0]["memory_free_bytes"] is gone[0]["utilization_ratio"] is None
    assert (gone[0]["name"], gone[0]["memory_total_bytes"]) == ("NVIDIA H200", 140 << 30)
    assert gone[1]["health"] == "ok"
    assert gone[1]["memory_free_bytes"] is not None
    assert health(back) == ["ok", "ok"]
    assert host.faults == [("GPU-a", sentence), ("GPU-a", "")]


def test_a_gpu_that_is_taken_out_is_lost_and_found_again_by_uuid(host: Host) -> None:
    """It comes back at another index."""
    host.driver.set(A, B)
    host.start()

    host.driver.set(B)
    host.until(lambda devices: sorted(health(devices)) == ["lost", "ok"])
    host.driver.set(B, A)
    back = host.until(lambda devices: health(devices) == ["ok", "ok"])

    assert [d["device_id"] for d in back] == ["GPU-b", "GPU-a"]


def test_a_slice_that_is_taken_away_is_lost(host: Host) -> None:
    """Its handle is no longer valid; the other slice stays."""
    slices = tuple(Gpu(f"MIG-{n}", {"memory": "8000000 8000000 0 0"}) for n in (1, 2))
    cut = replace(A.having(mig_mode="1"), slices=slices)
    host.driver.set(cut)
    host.start()

    host.driver.set(replace(cut, slices=slices[:1]))
    devices = host.until(lambda devices: "lost" in health(devices))

    assert [(d["device_id"], d["health"]) for d in devices] == [("MIG-1", "ok"), ("MIG-2", "lost")]


def test_slices_that_are_made_anew_are_found_and_the_former_say_why_they_are_gone(
    host: Host,
) -> None:
    """Nothing fell off the bus: who cuts a GPU in another way has to name the new slices."""
    former, new = (
        tuple(Gpu(f"MIG-{name}", {"memory": "8000000 8000000 0 0"}) for name in names)
        for names in (("1", "2"), ("3", "4"))
    )
    cut = A.having(mig_mode="1")
    host.driver.set(replace(cut, slices=former), B)
    host.start()

    host.driver.set(replace(cut, slices=new), B)
    devices = host.until(lambda devices: "MIG-3" in {d["device_id"] for d in devices})

    assert {d["device_id"]: d["health"] for d in devices} == {
        **dict.fromkeys(("MIG-1", "MIG-2"), "lost"),
        **dict.fromkeys(("MIG-3", "MIG-4", "GPU-b"), "ok"),
    }
    said = {d["health_detail"] for d in devices if d["health"] == "lost"}
    assert said == {
        "the MIG slice is no longer there: make it again, or name another one in the pool"
    }


def test_a_gpu_that_is_cut_into_slices_says_so_and_is_itself_again_when_they_are_gone(
    host: Host,
) -> None:
    """Its pool cannot have it as a whole meanwhile, and a restart of the machine would not help."""
    host.driver.set(A, B)
    host.start()
    slices = (Gpu("MIG-1", {"memory": "8000000 8000000 0 0"}),)

    host.driver.set(replace(A.having(mig_mode="1"), slices=slices), B)
    devices = host.until(lambda devices: "MIG-1" in {d["device_id"] for d in devices})
    host.driver.set(A, B)
    back = host.until(lambda devices: health(devices) == ["ok", "lost", "ok"])

    assert [d["health_detail"] for d in devices if d["device_id"] == "GPU-a"] == [CUT]
    by_id = {d["device_id"]: d for d in back}
    assert by_id["GPU-a"]["health"] == "ok"
    assert "MIG slice is no longer there" in by_id["MIG-1"]["health_detail"]


def test_a_gpu_whose_memory_can_no_longer_be_read_is_lost(host: Host) -> None:
    """Some drivers answer UNKNOWN instead; one odd answer is not enough."""
    host.driver.set(A)
    host.start()

    host.driver.set(A.failing("nvmlDeviceGetMemoryInfo_v2", UNKNOWN))
    host.until(lambda devices: devices[0]["memory_free_bytes"] is None)
    assert host.faults == []
    host.until_fault(lambda device_id, sentence: device_id == "GPU-a" and "lost" in sentence)
    host.driver.set(A)
    host.until(lambda devices: health(devices) == ["ok"])


@pytest.mark.parametrize("code", [DRIVER_NOT_LOADED, VERSION_MISMATCH, UNINITIALIZED])
def test_a_driver_that_is_unloaded_and_loaded_again_is_picked_up(host: Host, code: int) -> None:
    """Meanwhile NVML is closed, or the driver could not be unloaded; opening backs off."""
    host.driver.set(A, B)
    host.start()

    host.driver.set(A, B, head=(f"fail * {code}",))
    host.until(lambda devices: set(health(devices)) == {"driver_unavailable"})
    host.driver.forget_calls()
    host.readings(40)
    calls = host.driver.calls()
    host.driver.set(A, B)
    back = host.until(lambda devices: health(devices) == ["ok", "ok"])

    assert 1 <= calls["nvmlInitWithFlags"] <= 6, "2, 4, 8, 16 and 32 intervals apart"
    assert set(calls) <= {"nvmlInitWithFlags", "nvmlShutdown"}
    assert [d["memory_free_bytes"] is None for d in back] == [False, False]
    assert {device_id for device_id, _ in host.faults} == {"GPU-a", "GPU-b"}


def test_a_critical_xid_is_a_fault_until_the_gpu_has_been_well_for_a_while(host: Host) -> None:
    """A thorough reading after it proves the GPU well."""
    host.driver.set(A, B)
    host.start()

    host.driver.set(A, B, head=("xid 1 GPU-b 48",))
    unwell = host.until(lambda devices: devices[1]["health"] == "critical_error")
    fault = host.until_fault(lambda _id, _sentence: True)
    host.until_fault(lambda device_id, sentence: (device_id, sentence) == ("GPU-b", ""))
    well = host.until(lambda _devices: True)

    assert health(unwell) == ["ok", "critical_error"]
    assert fault[0] == "GPU-b"
    assert "XID 48 (an uncorrectable memory error)" in fault[1]
    assert (health(well), well[1]["last_xid"], well[0]["last_xid"]) == (["ok", "ok"], 48, None)


def test_any_other_xid_is_only_shown(host: Host) -> None:
    """An application's own error is no fault of the device."""
    host.driver.set(A)
    host.start()

    host.driver.set(A, head=("xid 2 GPU-a 31",))
    host.until(lambda devices: devices[0]["last_xid"] == 31)
    host.readings(10)

    assert host.faults == []


def test_an_xid_of_a_gpu_in_slices_concerns_all_of_them(host: Host) -> None:
    """Events name the GPU."""
    slices = tuple(Gpu(f"MIG-{n}", {"memory": "8000000 8000000 0 0"}) for n in (1, 2))
    cut = replace(A.having(mig_mode="1"), slices=slices)
    host.driver.set(cut)
    host.start()

    host.driver.set(cut, head=("xid 3 GPU-a 95",))
    devices = host.until(lambda devices: "critical_error" in health(devices))

    assert health(devices) == ["critical_error", "critical_error"]


def test_an_xid_that_cannot_be_is_not_told(host: Host) -> None:
    """No message could carry it, and what cannot be told must not end anything."""
    host.driver.set(A)
    host.start()

    host.driver.set(A, head=("xid 4 GPU-a -1",))
    waits = host.driver.calls()["nvmlEventSetWait_v2"]
    host.readings(3)
    while host.driver.calls()["nvmlEventSetWait_v2"] < waits + 2:
        host.readings(1)
    (asked,) = host.ask()
    host.driver.set(A, head=("xid 5 GPU-a 31",))
    host.until(lambda devices: devices[0]["last_xid"] == 31)

    assert asked["last_xid"] is None


@pytest.mark.parametrize(
    ("action", "named"), [("1", "reset_required"), ("2", "reset_required"), ("4", "ok")]
)
def test_a_reset_that_the_driver_asks_for_is_a_fault(host: Host, action: str, named: str) -> None:
    """A reset that can wait until the GPU is idle is none."""
    host.driver.set(A)
    host.start()

    host.driver.set(A.having(recovery=action))
    host.readings(12)
    (device,) = host.until(lambda _devices: True)
    host.driver.set(A)
    host.until(lambda devices: health(devices) == ["ok"])

    assert device["health"] == named


def test_a_driver_that_hangs_is_told_while_it_does(host: Host) -> None:
    """What was read before is out of date and no longer told as if it were true."""
    host.driver.set(A)
    host.start()

    host.driver.set(A, head=(f"delay nvmlDeviceGetUtilizationRates {STALE_MIN_MS + 500}",))
    host.readings(1)
    while (asked := host.ask())[0]["health"] == "ok":
        # The driver hangs: nothing happens that could be waited for.
        time.sleep(0.05)
    host.driver.set(A)
    host.until(lambda devices: health(devices) == ["ok"])

    assert asked[0]["health"] == "no_answer"
    assert "has not answered for" in asked[0]["health_detail"]
    assert asked[0]["memory_free_bytes"] is None


def test_without_events_devices_are_read_all_the_same(host: Host) -> None:
    """A driver that cannot tell of XIDs costs nothing but them, and no spinning."""
    host.driver.set(A, head=("fail nvmlEventSetWait_v2 999",))
    host.start()
    host.driver.forget_calls()
    host.readings(10)
    waits = host.driver.calls()["nvmlEventSetWait_v2"]

    assert waits <= 14, "one wait a reading"
