"""Readings that cannot be true are left out: integrated devices report success with garbage."""

from dataclasses import fields, replace
from typing import Any

from pool_managerd.core.device import Device

_TIB = 1 << 40

BOUNDS: dict[str, tuple[float, float]] = {
    "memory_total_bytes": (1 << 20, 16 * _TIB),
    "memory_free_bytes": (0, 16 * _TIB),
    "memory_used_bytes": (0, 16 * _TIB),
    "memory_reserved_bytes": (0, 16 * _TIB),
    "utilization_ratio": (0.0, 1.0),
    "temperature_celsius": (0, 150),
    "power_milliwatts": (0, 10_000_000),
    "sm_clock_mhz": (0, 10_000),
    "max_sm_clock_mhz": (1, 10_000),
    "memory_clock_mhz": (0, 50_000),
    "clock_event_reasons": (0, (1 << 32) - 1),
    "ecc_uncorrected_total": (0, (1 << 48) - 1),
    "ecc_uncorrected_aggregate": (0, (1 << 48) - 1),
    "last_xid": (0, (1 << 32) - 1),
}
"""Lowest and highest value of each number, both possible: far beyond any device there is."""

CAPABILITY_MAX = 99
"""Highest number of a compute capability, far beyond any that there is."""

_MEMORY = (
    "memory_total_bytes",
    "memory_free_bytes",
    "memory_used_bytes",
    "memory_reserved_bytes",
)


def plausible(device: Device) -> Device:
    """`device` without what cannot be true. Memory is kept or left out as a whole."""
    bad = {name for name in BOUNDS if not _within(device, name)}
    total, *rest = (getattr(device, name) for name in _MEMORY)
    parts = [part for part in rest if part is not None]
    if bad & set(_MEMORY) or (total is None and parts) or any(part > total for part in parts):
        bad.update(_MEMORY)
    absent: dict[str, Any] = dict.fromkeys(bad)
    return replace(device, **absent) if absent else device


def possible(name: str, value: float) -> bool:
    """Whether the number `name` of a device can have that value."""
    low, high = BOUNDS[name]
    return low <= value <= high


def capability_text(capability: tuple[int, int]) -> str | None:
    """A compute capability as MAJOR.MINOR; None for numbers that no device has."""
    if not all(0 <= number <= CAPABILITY_MAX for number in capability):
        return None
    return ".".join(map(str, capability))


def _within(device: Device, name: str) -> bool:
    value = getattr(device, name)
    return value is None or possible(name, value)


assert set(BOUNDS) <= {field.name for field in fields(Device)}, "bounds of fields that exist"
