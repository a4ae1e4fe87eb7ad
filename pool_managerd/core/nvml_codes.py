"""What error codes of NVML mean for people, and for a device's health. ORCH-3038, ORCH-3003.

Source: nvml.h, `nvmlReturn_t` and `nvmlDeviceGpuRecoveryAction_t`.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pool_managerd.core.device import DeviceHealth

UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25
GPU_NOT_FOUND = 28
UNKNOWN = 999

UNSUPPORTED = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})
"""The device or the driver does not have it: absent, and not asked for again for a while."""

DRIVER_GONE = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})
"""No device can be read any more: NVML has to be opened anew."""

_CPU_HINT = 'or set devices = "cpu" to run without a GPU'

_PROBLEMS: Mapping[int, str] = MappingProxyType(
    {
        NO_PERMISSION: "this user may not open the NVIDIA devices: give it access to /dev/nvidia* "
        "(group video on many systems), or give the container its GPUs",
        DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: load it (modprobe nvidia) and look at "
        f"the kernel log, {_CPU_HINT}",
        LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found: install the NVIDIA driver, which "
        f"brings it, {_CPU_HINT}",
        FUNCTION_NOT_FOUND: "libnvidia-ml.so.1 is too old for this program: install a driver of "
        "version 450 or newer",
        GPU_IS_LOST: "a GPU fell off the bus: look at the kernel log (dmesg), restart the machine",
        LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was upgraded, but the old one is still loaded: "
        "reboot, or load the new kernel modules, then restart pool-managerd",
        UNKNOWN: "NVML failed for an unknown reason, which often means a broken driver: look at "
        "the kernel log (dmesg | grep NVRM)",
    }
)


def open_problem(code: int, text: str) -> str:
    """Why NVML cannot be opened, with what to do. `text` is the library's own message."""
    known = _PROBLEMS.get(code)
    return known or f"NVML cannot be used ({text}): look at the kernel log (dmesg), {_CPU_HINT}"


NO_GPU = f"the NVIDIA driver sees no GPU: look at the kernel log (dmesg), {_CPU_HINT}"


def device_problem(code: int, is_slice: bool) -> tuple[DeviceHealth, str] | None:
    """What an error of a query says about the device; None when it says nothing about it."""
    if code in (GPU_IS_LOST, GPU_NOT_FOUND):
        return DeviceHealth.LOST, LOST
    if code == RESET_REQUIRED:
        return DeviceHealth.RESET_REQUIRED, RESET
    if is_slice and code in (INVALID_ARGUMENT, NOT_FOUND):
        return DeviceHealth.LOST, SLICE_GONE
    return None


LOST = (
    "the GPU is lost: it fell off the bus or was removed; look at the kernel log (dmesg), "
    "then restart the machine"
)
RESET = "the GPU needs a reset: stop what uses it and run nvidia-smi --gpu-reset, or reboot"
SLICE_GONE = "the MIG slice is no longer there: make it again, or name another one in the pool"
CUT = (
    "the GPU is cut into MIG slices now: name one of them in the pool and restart pool-managerd, "
    "or switch MIG off again"
)


def absent(device_id: str, seen: Iterable[str]) -> str:
    """The sentence about a device that a pool names and that was never there."""
    there = ", ".join(sorted(seen))
    return (
        f"there is no device {device_id} here now: it is lost, or its id is wrong; "
        f"this host has: {there}"
    )


_RESET_ACTIONS: Mapping[int, str] = MappingProxyType(
    {
        1: RESET,
        2: "the driver asks for a reboot of this machine to recover the GPU",
        6: "the GPU needs a bus reset: restart the machine",
        7: "the driver asks for a reboot of this machine to recover the GPU",
    }
)


def recovery_problem(action: int | None) -> str | None:
    """The sentence for a recovery action that the driver asks for; None when it can wait.

    Draining peer traffic (3), a reset once idle (4) and the fabric (5) do not stop the device.
    """
    return None if action is None else _RESET_ACTIONS.get(action)
