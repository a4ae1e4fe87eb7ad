"""Pools of the core as operators see them."""

from dataclasses import dataclass

from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.placement import CANCEL_UNCONFIRMED, DRAINING
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.records import PoolDrainRecord
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.wire.views import timestamp

_HEALTHS = {
    number: name.removeprefix("DEVICE_HEALTH_")
    for name, number in snapshot_pb2.DeviceHealth.items()
    if number
}


UNDURABLE = (
    "the last word of an operator is obeyed, but not in the journal yet: a restart would forget it"
)


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool and what it does not know itself.

    `reported` is the last snapshot as it came, for the facts about devices that no decision needs;
    None after a restart until the host reports. `tokens_per_s` is the learned rate of one stream.
    `undurable` says that a restart would forget its drain, or the end of it.
    """

    pool: Pool
    now_ms: int
    reported: snapshot_pb2.PoolSnapshot | None = None
    tokens_per_s: float | None = None
    drain: PoolDrainRecord | None = None
    undurable: bool = False


def pool_to_proto(view: PoolView) -> pool_admin_service_pb2.Pool:
    """One pool as it is now. O(devices)."""
    pool, snapshot = view.pool, view.pool.snapshot
    return pool_admin_service_pb2.Pool(
        pool_id=snapshot.pool_id,
        replica_id=snapshot.replica_id,
        host_id=snapshot.host_id,
        connected=pool.connected,
        state=state_of(pool),
        state_reason=UNDURABLE if view.undurable else state_reason(pool),
        engine=snapshot.engine,
        engine_version=snapshot.engine_version,
        model_id=snapshot.model_id,
        model_digest=snapshot.model_digest,
        slots_total=snapshot.slots_total,
        slots_free=pool.slots_free(),
        ctx_max=snapshot.ctx_max,
        snapshot_age_ms=max(0, view.now_ms - pool.as_of_ms),
        snapshot_version=snapshot.version,
        devices=_devices(view),
        tokens_per_s=view.tokens_per_s,
        perf_scale=None if snapshot.perf_scale == 1.0 else snapshot.perf_scale,
        drain=None if view.drain is None or view.undurable else _drain(view.drain, pool),
    )


def state_of(pool: Pool) -> str:
    """The state of a pool in capitals, as every display and metric tells it."""
    told = pool.snapshot.state
    if told is PoolState.READY and pool.draining:
        # The host may not have heard of the drain yet: nothing is placed there all the same.
        told = PoolState.DRAINING
    elif told is PoolState.READY and pool.retired:
        told = PoolState.UNREADY
    # What a host said last is no news of a pool that nobody has heard of since.
    return told.name if pool.connected else "DISCONNECTED"


def _drain(drain: PoolDrainRecord, pool: Pool) -> pool_admin_service_pb2.PoolDrain:
    return pool_admin_service_pb2.PoolDrain(
        began_at=timestamp(drain.since_ms),
        until=timestamp(drain.until_ms),
        running_attempts=len(pool.own.keys() | pool.reported),
    )


def state_reason(pool: Pool) -> str:
    """Why a pool takes no work, as every display tells it; empty where nothing is to be said."""
    if not pool.connected:
        # What was wrong with it then may be over, and is not why it serves nothing now.
        return f"its host is not connected; it was {pool.snapshot.state.name} when last heard of"
    if pool.unconfirmed:
        return f"{CANCEL_UNCONFIRMED}: {len(pool.unconfirmed)} attempts were not confirmed stopped"
    model_id = pool.snapshot.model_id
    if pool.retired:
        return f"its model {model_id} is retired; see `llorch models show {model_id}`"
    if pool.verdict is DigestVerdict.MISMATCH:
        return f"gets no jobs: the catalog states another digest of {model_id} than it reports"
    if pool.draining and pool.snapshot.state in (PoolState.READY, PoolState.DRAINING):
        command = f"`llorch undrain {pool.snapshot.pool_id}` lets it take work again"
        return f"{DRAINING}; {command}"
    return _reason(pool.snapshot.state_reason, pool.snapshot.state_detail)


def _reason(reason: str, detail: str) -> str:
    return f"{reason}: {detail}" if reason and detail else reason or detail


def _devices(view: PoolView) -> list[pool_admin_service_pb2.PoolDevice]:
    """What the host reports of them now; while it is not connected, their names alone."""
    if view.reported is None:
        return []
    tell = _device if view.pool.connected else _name
    return [tell(device) for device in view.reported.devices]


def _name(device: snapshot_pb2.Device) -> pool_admin_service_pb2.PoolDevice:
    return pool_admin_service_pb2.PoolDevice(device_id=device.device_id, name=device.name)


def _device(device: snapshot_pb2.Device) -> pool_admin_service_pb2.PoolDevice:
    shown = _name(device)
    if device.HasField("memory_total_bytes"):
        shown.memory_total_bytes = device.memory_total_bytes
    if device.HasField("memory_used_bytes"):
        shown.memory_used_bytes = device.memory_used_bytes
    if device.HasField("utilization_ratio"):
        shown.utilization_ratio = device.utilization_ratio
    if device.HasField("temperature_celsius"):
        shown.temperature_celsius = device.temperature_celsius
    # One that is newer than this server is not known to it.
    shown.health = _HEALTHS.get(device.health, "")
    shown.health_detail = device.health_detail
    return shown
