"""What metrics show of pools beyond what the core knows: devices and caches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from llamaorch.pool.v1 import snapshot_pb2


@dataclass(frozen=True, slots=True)
class DeviceGauges:
    """Load of one device. None where the hardware does not report it; the ratio is 0 to 1."""

    device: str
    utilization_ratio: float | None
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class PoolGauges:
    """Load of one pool. None where the engine does not report it; the ratio is 0 to 1."""

    pool_id: str
    replica_id: str
    engine: str
    engine_version: str
    kv_cache_usage_ratio: float | None = None
    devices: tuple[DeviceGauges, ...] = ()


class FleetView(Protocol):
    """Reads the last snapshots. Called on the event loop, once per scrape or export."""

    def pools(self) -> Iterable[PoolGauges]:
        """The load of every registered pool."""
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
    )


def _device_gauges(device: snapshot_pb2.Device) -> DeviceGauges:
    used = device.memory_used_bytes if device.HasField("memory_used_bytes") else None
    busy = device.utilization_ratio if device.HasField("utilization_ratio") else None
    return DeviceGauges(device.device_id, busy, used)
