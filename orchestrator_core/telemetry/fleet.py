"""What metrics show of pools beyond what the core knows: devices and caches."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from llamaorch.pool.v1 import snapshot_pb2

# Source: nvml.h, `nvmlClocksEventReason*`.
SLOWED_BY: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x4: "power_cap",
        0x8: "hardware_slowdown",
        0x20: "software_thermal",
        0x40: "hardware_thermal",
        0x80: "power_brake",
    }
)


class DeviceHealth(enum.Enum):
    """Whether a device can be used, as its host reports it."""

    OK = "ok"
    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    CRITICAL_ERROR = "critical_error"
    DRIVER_UNAVAILABLE = "driver_unavailable"
    NO_ANSWER = "no_answer"
    UNKNOWN = "unknown"


_HEALTH: Final = {
    snapshot_pb2.DeviceHealth.Value(f"DEVICE_HEALTH_{health.name}"): health
    for health in DeviceHealth
    if health is not DeviceHealth.UNKNOWN
}


@dataclass(frozen=True, slots=True)
class DeviceGauges:
    """One device. None where the hardware does not report it; the ratio is 0 to 1.

    `clock_event_reasons` is NVML's bit mask, see `SLOWED_BY`.
    """

    device: str
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    name: str = ""
    driver_version: str = ""
    temperature_celsius: int | None = None
    power_milliwatts: int | None = None
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    clock_event_reasons: int | None = None
    ecc_uncorrected_total: int | None = None
    last_xid: int | None = None
    health: DeviceHealth = DeviceHealth.UNKNOWN


@dataclass(frozen=True, slots=True)
class PoolGauges:
    """Load of one pool. None where the engine does not report it; the ratio is 0 to 1."""

    pool_id: str
    replica_id: str
    engine: str
    engine_version: str
    kv_cache_usage_ratio: float | None = None
    devices: tuple[DeviceGauges, ...] = ()
    host_id: str = ""


class FleetView(Protocol):
    """Reads the last snapshots. Called on the event loop, once per scrape or export."""

    def pools(self) -> Iterable[PoolGauges]:
        """The load of every pool whose host is connected."""
        ...


class NoFleet:
    """A view that shows nothing."""

    def pools(self) -> Iterable[PoolGauges]:
        """No pools."""
        return ()


def pool_gauges(snapshot: snapshot_pb2.PoolSnapshot) -> PoolGauges:
    """Takes from a reported snapshot what the metrics show."""
    kv_ratio = None
    if snapshot.HasField("kv_cache_usage_ratio"):
        kv_ratio = snapshot.kv_cache_usage_ratio
    return PoolGauges(
        pool_id=snapshot.pool_id,
        replica_id=snapshot.replica_id,
        engine=snapshot.engine,
        engine_version=snapshot.engine_version,
        kv_cache_usage_ratio=kv_ratio,
        devices=tuple(_device_gauges(device) for device in snapshot.devices),
        host_id=snapshot.host_id,
    )


_OPTIONAL: Final = (
    "utilization_ratio",
    "memory_used_bytes",
    "memory_total_bytes",
    "temperature_celsius",
    "power_milliwatts",
    "sm_clock_mhz",
    "max_sm_clock_mhz",
    "clock_event_reasons",
    "ecc_uncorrected_total",
    "last_xid",
)


def _device_gauges(device: snapshot_pb2.Device) -> DeviceGauges:
    known = {name: getattr(device, name) for name in _OPTIONAL if device.HasField(name)}
    return DeviceGauges(
        device.device_id,
        **known,
        name=device.name,
        driver_version=device.driver_version,
        health=_HEALTH.get(device.health, DeviceHealth.UNKNOWN),
    )
