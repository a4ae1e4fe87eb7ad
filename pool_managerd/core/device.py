"""Facts about one device. What the hardware does not report is None, never 0."""

import enum
from dataclasses import dataclass


class DeviceKind(enum.Enum):
    """What a device is."""

    GPU = "gpu"
    MIG = "mig"
    CPU = "cpu"


class DeviceHealth(enum.Enum):
    """Whether a device can be used."""

    OK = "ok"
    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    CRITICAL_ERROR = "critical_error"
    DRIVER_UNAVAILABLE = "driver_unavailable"
    NO_ANSWER = "no_answer"


@dataclass(frozen=True, slots=True)
class Device:
    """One device at one instant.

    `device_id` (the NVML UUID, or "cpu") is the only key; `index` is not. A MIG slice names its GPU
    (`parent_device_id`) and its place there (`slice_index`). With `memory_is_host_memory` the
    device has no memory of its own: what is told is the host's, which both share.
    `health_detail` is a sentence for people, empty when the health is OK.
    """

    device_id: str
    kind: DeviceKind
    name: str | None = None
    index: int | None = None
    parent_device_id: str | None = None
    slice_index: int | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    memory_is_host_memory: bool | None = None
    utilization_ratio: float | None = None
    temperature_celsius: int | None = None
    power_milliwatts: int | None = None
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    clock_event_reasons: int | None = None
    ecc_uncorrected_total: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    last_xid: int | None = None
    mig_enabled: bool | None = None
    health: DeviceHealth = DeviceHealth.OK
    health_detail: str = ""

    def unwell(self, health: DeviceHealth, detail: str) -> "Device":
        """What is still true of a device that cannot be read: what it is and how much it has."""
        return Device(
            device_id=self.device_id,
            kind=self.kind,
            name=self.name,
            index=self.index,
            parent_device_id=self.parent_device_id,
            slice_index=self.slice_index,
            compute_capability=self.compute_capability,
            memory_total_bytes=self.memory_total_bytes,
            memory_is_host_memory=self.memory_is_host_memory,
            last_xid=self.last_xid,
            mig_enabled=self.mig_enabled,
            health=health,
            health_detail=detail,
        )


def lowest_compute_capability(devices: tuple[Device, ...]) -> str | None:
    """The lowest capability among `devices`, compared as numbers (8.10 is newer than 8.9).

    None when one of them reports none: what is not known of one device is not known of the pool.
    """
    found = [device.compute_capability for device in devices]
    known = [text for text in found if text is not None]
    if not known or len(known) < len(found):
        return None
    return min(known, key=lambda text: tuple(int(part) for part in text.split(".")))


def sum_or_none(values: list[int | None]) -> int | None:
    """The sum, or None when there are no values or one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
