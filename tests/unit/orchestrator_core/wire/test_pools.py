"""Pools as operators see them: nothing stale is told as if it were so now."""

import pytest

from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState
from orchestrator_core.wire.pools import PoolView, pool_to_proto, state_of

REPORTED = snapshot_pb2.PoolSnapshot(
    devices=[
        snapshot_pb2.Device(
            device_id="GPU-1",
            name="RTX 3090",
            memory_total_bytes=24 << 30,
            memory_used_bytes=18 << 30,
            utilization_ratio=0.87,
            temperature_celsius=71,
            health=snapshot_pb2.DEVICE_HEALTH_LOST,
            health_detail="it fell off the bus",
        )
    ]
)


def _pool(**fields: object) -> Pool:
    snapshot = PoolSnapshot("p", "p-1", "host", 1, model_id="m", engine="mock", slots_free=1)
    return Pool(snapshot, 0, **fields)  # type: ignore[arg-type]


def _devices(pool: Pool) -> list[pool_admin_service_pb2.PoolDevice]:
    return list(pool_to_proto(PoolView(pool, 5_000, REPORTED)).devices)


def test_devices_are_told_with_their_readings() -> None:
    """As the host reported them last."""
    (device,) = _devices(_pool())

    assert (device.memory_used_bytes, device.temperature_celsius) == (18 << 30, 71)
    assert (device.health, device.health_detail) == ("LOST", "it fell off the bus")


def test_of_a_host_that_is_away_no_reading_is_told() -> None:
    """What a card did when it was heard of last is not what it does now; what it is, stays."""
    (device,) = _devices(_pool(connected=False))

    assert device == pool_admin_service_pb2.PoolDevice(device_id="GPU-1", name="RTX 3090")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "READY"),
        ({"draining": True}, "DRAINING"),
        ({"retired": True}, "UNREADY"),
        ({"draining": True, "retired": True}, "DRAINING"),
        ({"connected": False, "draining": True}, "DISCONNECTED"),
    ],
)
def test_a_pool_that_takes_nothing_is_not_told_as_ready(
    fields: dict[str, object], told: str
) -> None:
    """Whatever its host says of it."""
    pool = _pool(**fields)

    assert pool.snapshot.state is PoolState.READY
    assert state_of(pool) == told
