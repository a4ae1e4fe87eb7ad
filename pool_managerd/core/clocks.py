"""Why a GPU lowers its clocks, and what that does to the speed of a pool. ORCH-3040.

Source: nvml.h, `nvmlClocksEventReason*`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pool_managerd.core.device import Device

POWER_CAP = 0x4
HW_SLOWDOWN = 0x8
SW_THERMAL = 0x20
HW_THERMAL = 0x40
HW_POWER_BRAKE = 0x80

REASONS: Mapping[int, str] = MappingProxyType(
    {
        0x1: "idle",
        0x2: "application clocks",
        POWER_CAP: "power cap",
        HW_SLOWDOWN: "hardware slowdown",
        0x10: "sync boost",
        SW_THERMAL: "software thermal slowdown",
        HW_THERMAL: "hardware thermal slowdown",
        HW_POWER_BRAKE: "power brake",
        0x100: "display clocks",
    }
)
"""Idle, application clocks and the power cap are how a GPU normally works."""

SLOWDOWN = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | HW_POWER_BRAKE
"""The GPU protects itself: it is slower than it was when its speed was learned."""

SCALE_STEPS = 20
"""Scales are whole twentieths, so that a clock that wavers does not look like news."""


def reason_names(mask: int) -> tuple[str, ...]:
    """The names of the bits in `mask`, lowest first; a bit without a name is told as a number."""
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(REASONS.get(bit, f"{bit:#x}") for bit in bits)


def slowdown(device: Device) -> float:
    """What the device's speed is multiplied with: 1 unless it protects itself, at least 1/20.

    The present clock of the multiprocessors over the highest one, in whole twentieths, rounded
    down. 1 where a clock is not known.
    """
    clock, highest = device.sm_clock_mhz, device.max_sm_clock_mhz
    if not (device.clock_event_reasons or 0) & SLOWDOWN or clock is None or not highest:
        return 1.0
    steps = clock * SCALE_STEPS // highest
    return min(max(steps, 1), SCALE_STEPS) / SCALE_STEPS


def perf_scale(devices: tuple[Device, ...]) -> float | None:
    """The scale of a pool, None when it is 1: the slowest device sets the pace of all."""
    scale = min((slowdown(device) for device in devices), default=1.0)
    return scale if scale < 1.0 else None
