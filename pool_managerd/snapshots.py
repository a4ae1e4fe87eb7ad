"""Builds PoolSnapshots.

Everything in one is read in one step of the event loop. Design 5.4, LO-203.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.pool.v1 import snapshot_pb2
from pool_managerd.attempts.executor import Executor
from pool_managerd.clock import Clock
from pool_managerd.config.engines import EngineTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.core.clocks import perf_scale
from pool_managerd.core.device import (
    Device,
    DeviceHealth,
    DeviceKind,
    lowest_compute_capability,
    sum_or_none,
)
from pool_managerd.core.ledger import Ledger
from pool_managerd.core.mask import names, selected
from pool_managerd.core.reload import ReloadState
from pool_managerd.core.replica import PoolState, Reason
from pool_managerd.core.tellable import plain_text
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.port import EngineInfo
from pool_managerd.pools.pool import Pool
from pool_managerd.preflight.memory import memory_of

_STATES: Mapping[PoolState, snapshot_pb2.PoolState.ValueType] = {
    state: snapshot_pb2.PoolState.Value(f"POOL_STATE_{state.name}") for state in PoolState
}
_REASONS: Mapping[Reason, snapshot_pb2.PoolStateReason.ValueType] = {
    reason: (
        snapshot_pb2.POOL_STATE_REASON_UNSPECIFIED
        if reason is Reason.NONE
        else snapshot_pb2.PoolStateReason.Value(f"POOL_STATE_REASON_{reason.name}")
    )
    for reason in Reason
}
_DEVICE_KINDS: Mapping[DeviceKind, snapshot_pb2.DeviceKind.ValueType] = {
    kind: snapshot_pb2.DeviceKind.Value(f"DEVICE_KIND_{kind.name}") for kind in DeviceKind
}
_HEALTH: Mapping[DeviceHealth, snapshot_pb2.DeviceHealth.ValueType] = {
    health: snapshot_pb2.DeviceHealth.Value(f"DEVICE_HEALTH_{health.name}")
    for health in DeviceHealth
}
_PLAIN_DEVICE_FIELDS = tuple(
    field.name for field in fields(Device) if field.name not in ("kind", "health")
)


@dataclass(slots=True)
class HostState:
    """Counters of one run of the pool manager, written by the link alone.

    `epoch` is the highest epoch seen of the orchestrator's journal `journal_id`,
    `applied_dispatch_seq` the last command of the present stream that was applied,
    `emitted_frame_seq` the last frame handed to a stream, `dial_seq` the streams opened so far,
    `registrations` those of them that the orchestrator took.
    """

    host_id: str
    boot_id: str
    journal_id: str = ""
    epoch: int = 0
    applied_dispatch_seq: int = 0
    emitted_frame_seq: int = 0
    dial_seq: int = 0
    registrations: int = 0


_RELOADS = {
    ReloadState.WAITING: snapshot_pb2.RELOAD_STATE_WAITING,
    ReloadState.LOADING: snapshot_pb2.RELOAD_STATE_LOADING,
    ReloadState.DONE: snapshot_pb2.RELOAD_STATE_DONE,
    ReloadState.ROLLED_BACK: snapshot_pb2.RELOAD_STATE_ROLLED_BACK,
    ReloadState.FAILED: snapshot_pb2.RELOAD_STATE_FAILED,
}


class SnapshotBuilder:
    """Snapshots of the pools of one host.

    `version` grows with every snapshot of one incarnation.
    """

    def __init__(
        self,
        host: HostState,
        pools: Iterable[Pool],
        executor: Executor,
        devices: DeviceSource,
        clock: Clock,
        ledger: Ledger | None = None,
    ) -> None:
        self._host = host
        self._ledger = ledger or Ledger()
        self._pools = {pool.pool_id: pool for pool in pools}
        self._executor = executor
        self._devices = devices
        self._clock = clock
        self._versions: dict[str, tuple[str, int]] = {}

    def build(self, pool_ids: Iterable[str]) -> list[snapshot_pb2.PoolSnapshot]:
        """Snapshots of the named pools, sorted by id."""
        return [self._one(self._pools[pool_id]) for pool_id in sorted(pool_ids)]

    def all(self) -> list[snapshot_pb2.PoolSnapshot]:
        """Snapshots of all pools, sorted by id."""
        return self.build(self._pools)

    def _one(self, pool: Pool) -> snapshot_pb2.PoolSnapshot:
        replica_id = pool.incarnation.replica_id
        message = snapshot_pb2.PoolSnapshot(
            pool_id=pool.pool_id,
            replica_id=replica_id,
            host_id=self._host.host_id,
            version=self._next_version(pool.pool_id, replica_id),
            observed_at=self._now(),
            epoch=self._host.epoch,
            applied_dispatch_seq=self._host.applied_dispatch_seq,
            emitted_frame_seq=self._host.emitted_frame_seq,
            model_id=pool.table.engine.model_id,
            perf_tokens_per_s=pool.table.perf_tokens_per_s,
            first_token_ms=pool.table.first_token_ms,
            prefill_tokens_per_s=pool.table.prefill_tokens_per_s,
            warm_session_ids=pool.incarnation.warm,
        )
        state, reason, detail = pool.state()
        message.state, message.state_reason = _STATES[state], _REASONS[reason]
        message.state_detail = plain_text(detail)
        _add_engine(message, pool)
        _add_devices(message, pool.table, self._devices.devices(), self._ledger)
        for memory, entry in self._ledger.entries(pool.pool_id).items():
            message.memory_claims.add(
                memory=memory, estimated_bytes=entry.estimated, taken_bytes=entry.taken
            )
        reload = pool.model.last
        if reload is not None:
            message.reload.reload_id = reload.reload_id
            message.reload.detail = plain_text(reload.problem)
            message.reload.state = _RELOADS[reload.state]
        for log in self._executor.running(replica_id):
            message.running.add(
                job_id=log.key.job_id, attempt=log.key.attempt, tokens_out=log.tokens_out
            )
        return message

    def _next_version(self, pool_id: str, replica_id: str) -> int:
        known_replica_id, version = self._versions.get(pool_id, (replica_id, 0))
        version = version + 1 if known_replica_id == replica_id else 1
        self._versions[pool_id] = (replica_id, version)
        return version

    def _now(self) -> Timestamp:
        seconds, nanos = divmod(self._clock.wall_ns(), 1_000_000_000)
        return Timestamp(seconds=seconds, nanos=nanos)


def _add_engine(message: snapshot_pb2.PoolSnapshot, pool: Pool) -> None:
    # What the last engine told stays known while the next one starts: jobs may queue for it.
    info = pool.info
    if info is None:
        # A job that needs determinism may queue for it already.
        message.deterministic = _configured_deterministic(pool.table.engine)
        return
    message.engine = info.engine
    message.engine_version = info.engine_version
    message.model_id = info.model_id
    message.model_digest = info.model_digest
    message.sampler_profile_version = info.sampler_profile_version
    message.deterministic = info.deterministic
    message.ctx_max = info.ctx_max
    message.supports.quantizations.extend(info.quantizations)
    message.supports.extensions.extend(info.extensions)
    message.slots_total = info.slots_total
    slots = pool.incarnation.slots
    message.slots_free = slots.free if slots is not None else 0
    add_kv(message, info)


def _configured_deterministic(engine: EngineTable) -> bool:
    match engine.kind:
        case "mock":
            return True
        case "ollama":
            return False
        case _:
            return engine.deterministic


def add_kv(message: snapshot_pb2.PoolSnapshot, info: EngineInfo) -> None:
    """Tells the room for keys and values: a free slot of a preallocated cache has all of its own.

    LO-205. Without that, free memory would exclude jobs that need none of it. The share in use is
    that of the busy slots.
    """
    message.kv_preallocated = info.kv_preallocated
    if info.kv_preallocated:
        message.kv_cache_usage_ratio = 1 - message.slots_free / message.slots_total
    if info.kv_bytes_per_token is not None:
        message.kv_bytes_per_token = info.kv_bytes_per_token
    if info.kv_slot_bytes is not None:
        message.kv_slot_bytes = info.kv_slot_bytes
        if info.kv_preallocated:
            message.kv_free_bytes = message.slots_free * info.kv_slot_bytes


def masked(table: PoolTable, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """The devices of a pool's mask; all of them when the mask is empty. ORCH-3011."""
    return selected(table.devices, devices)


def by_device_id(table: PoolTable, devices: tuple[Device, ...]) -> PoolTable:
    """The table with its mask as device ids, an empty one too: the pool's devices are fixed then.

    Indexes mean something else to every library, and an engine that is told none would go by the
    environment.
    """
    mine = masked(table, devices)
    ids = tuple(device.device_id for device in mine)
    # The weights follow their devices into the new order.
    split = tuple(split_weights(table, mine).values())
    return table.model_copy(update={"devices": ids, "tensor_split": split})


def split_weights(table: PoolTable, mine: tuple[Device, ...]) -> dict[str, int]:
    """The weight of each of the pool's devices, by id; empty unless the pool states a split."""
    stated = dict(zip(table.devices, table.tensor_split, strict=False))
    return {
        device.device_id: next(w for entry, w in stated.items() if names(entry, device))
        for device in mine
        if stated
    }


def _free_bytes(device: Device, ledger: Ledger) -> int | None:
    """What is free by the device and by what the pools of this host claim. Design 5.4.

    An engine that has just started has not taken all that it will.
    """
    free, total = device.memory_free_bytes, device.memory_total_bytes
    if free is None or total is None:
        return free
    return max(0, min(free, total - ledger.claimed(memory_of(device))))


def _add_devices(
    message: snapshot_pb2.PoolSnapshot,
    table: PoolTable,
    devices: tuple[Device, ...],
    ledger: Ledger,
) -> None:
    mine = masked(table, devices)
    weights = split_weights(table, mine)
    for device in mine:
        entry = message.devices.add(kind=_DEVICE_KINDS[device.kind])
        if weights:
            entry.tensor_split = weights[device.device_id]
        entry.health = _HEALTH[device.health]
        for name in _PLAIN_DEVICE_FIELDS:
            value = getattr(device, name)
            if value is not None:
                setattr(entry, name, value)
    capability = lowest_compute_capability(mine)
    total_bytes = sum_or_none([device.memory_total_bytes for device in mine])
    free_bytes = sum_or_none([_free_bytes(device, ledger) for device in mine])
    if capability is not None:
        message.compute_capability = capability
    if total_bytes is not None:
        message.vram_total_bytes = total_bytes
    if free_bytes is not None:
        message.vram_free_bytes = free_bytes
    scale = perf_scale(mine)
    if scale is not None:
        message.perf_scale = scale
