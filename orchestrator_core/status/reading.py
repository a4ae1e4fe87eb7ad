"""Reads the present state for the page: what GetOverview and ListPools tell, bounded for a screen.

Lists are bounded before anything is made of them: a look costs O(rows shown), and O(pools) for the
counts, however many jobs wait or are kept.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.machine import Core
from orchestrator_core.core.pool import Pool as CorePool
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.overview import overview
from orchestrator_core.status.jobs import ended, running, waiting
from orchestrator_core.status.model import Device, Pool, Queue, Server, Status
from orchestrator_core.wire.pools import PoolView, pool_to_proto, state_of

ROWS = 50
POOLS_SHOWN = 200
DEVICES_SHOWN = 256
_STORE_SILENT = "The journal does not answer: no job is accepted, and no outcome is told."

# A host that is newer than this server may say what is not known here: that is shown as nothing.
_KINDS = {
    number: name.removeprefix("DEVICE_KIND_").lower()
    for name, number in snapshot_pb2.DeviceKind.items()
    if number
}
_HEALTHS = {
    number: name.removeprefix("DEVICE_HEALTH_").lower()
    for name, number in snapshot_pb2.DeviceHealth.items()
    if number
}

Reported = Mapping[str, snapshot_pb2.PoolSnapshot]


class StatusReader:
    """Reads one orchestrator."""

    def __init__(self, runtime: Runtime, version: str) -> None:
        self._runtime = runtime
        self._version = version

    async def read(self) -> Status:
        """The state at this moment; what is told of ended jobs is durable."""
        told = await overview(self._runtime, ROWS)
        core, now_ms = self._runtime.core, self._runtime.clock.now_ms()
        reported = self._runtime.hosts.reported
        ready, troubled = _by_health(core)
        shown = [core.pools[pool_id] for pool_id in _first(troubled, ready)]
        trouble = _STORE_SILENT if told.store_unavailable else ""
        return Status(
            at_ms=now_ms,
            server=Server(self._version, told.draining, trouble),
            queue=_queue(told, core),
            waiting=tuple(waiting(job, now_ms) for queue in told.queues for job in queue.next),
            running=tuple(running(job, now_ms) for job in told.running),
            running_total=told.running_total,
            ended=tuple(ended(job, now_ms) for job in told.ended),
            ended_total=told.ended_total,
            pools=tuple(_pool(core, pool, reported, now_ms) for pool in shown),
            pools_total=len(core.pools),
            pools_ready=len(ready),
            slots_total=sum(pool.snapshot.slots_total for pool in ready.values()),
            slots_free=sum(pool.slots_free() for pool in ready.values()),
            devices=tuple(islice(_devices(shown, reported, now_ms), DEVICES_SHOWN)),
        )


def _queue(told: pb.GetOverviewResponse, core: Core) -> Queue:
    depths = {queue.priority: queue.waiting for queue in told.queues}
    return Queue(
        depths.get(job_pb2.PRIORITY_INTERACTIVE, 0),
        depths.get(job_pb2.PRIORITY_BATCH, 0),
        told.queue_capacity,
        core.config.queue_policy.value,
    )


def _by_health(core: Core) -> tuple[dict[str, CorePool], dict[str, CorePool]]:
    """The pools that are READY, and the others."""
    ready: dict[str, CorePool] = {}
    troubled: dict[str, CorePool] = {}
    for pool_id, pool in core.pools.items():
        (ready if state_of(pool) == PoolState.READY.name else troubled)[pool_id] = pool
    return ready, troubled


def _first(troubled: Iterable[str], ready: Iterable[str]) -> list[str]:
    """The ids to show, those first that need somebody's eyes."""
    ids = heapq.nsmallest(POOLS_SHOWN, troubled)
    return [*ids, *heapq.nsmallest(POOLS_SHOWN - len(ids), ready)]


def _pool(core: Core, pool: CorePool, reported: Reported, now_ms: int) -> Pool:
    last = reported.get(pool.snapshot.pool_id)
    told = pool_to_proto(PoolView(pool, now_ms, last, core.tokens_per_s(pool)))
    kv_known = last is not None and pool.connected and last.HasField("kv_cache_usage_ratio")
    return Pool(
        pool_id=told.pool_id,
        host_id=told.host_id,
        state=told.state.lower(),
        reason=told.state_reason,
        engine=told.engine,
        engine_version=told.engine_version,
        model_id=told.model_id,
        slots_total=told.slots_total,
        slots_free=told.slots_free,
        ctx_max=told.ctx_max,
        decode_tokens_per_s=told.tokens_per_s,
        prompt_tokens_per_s=1000.0 / pool.prompt_token_ms if pool.prompt_token_ms > 0 else None,
        first_token_ms=int(pool.first_base_ms),
        perf_scale=pool.snapshot.perf_scale,
        kv_cache_ratio=last.kv_cache_usage_ratio if last is not None and kv_known else None,
        snapshot_age_ms=told.snapshot_age_ms,
        snapshot_version=told.snapshot_version,
    )


def _devices(pools: list[CorePool], reported: Reported, now_ms: int) -> Iterator[Device]:
    """Each device once, as its youngest snapshot tells of it; by host and number of the device."""
    users: dict[tuple[str, int, str], dict[str, CorePool]] = {}
    for pool in pools:
        snapshot = reported.get(pool.snapshot.pool_id)
        for device in () if snapshot is None else snapshot.devices:
            key = (pool.snapshot.host_id, device.index, device.device_id)
            users.setdefault(key, {})[pool.snapshot.pool_id] = pool
    for (host_id, _, device_id), sharing in sorted(users.items(), key=lambda item: item[0]):
        latest = max(sharing.values(), key=lambda pool: pool.as_of_ms)
        snapshot = reported[latest.snapshot.pool_id]
        device = next(d for d in snapshot.devices if d.device_id == device_id)
        yield _device(device, host_id, latest, tuple(sorted(sharing)), now_ms)


def _device(
    told: snapshot_pb2.Device,
    host_id: str,
    latest: CorePool,
    pool_ids: tuple[str, ...],
    now_ms: int,
) -> Device:
    shown = told if latest.connected else snapshot_pb2.Device()
    return Device(
        device_id=told.device_id,
        host_id=host_id,
        name=told.name,
        kind=_KINDS.get(told.kind, ""),
        health=_HEALTHS.get(told.health, ""),
        health_detail=told.health_detail,
        connected=latest.connected,
        memory_total_bytes=_known(shown, "memory_total_bytes"),
        memory_used_bytes=_known(shown, "memory_used_bytes"),
        utilization_ratio=shown.utilization_ratio if shown.HasField("utilization_ratio") else None,
        temperature_celsius=_known(shown, "temperature_celsius"),
        power_milliwatts=_known(shown, "power_milliwatts"),
        pool_ids=pool_ids,
        age_ms=max(0, now_ms - latest.as_of_ms),
    )


def _known(device: snapshot_pb2.Device, field: str) -> int | None:
    return int(getattr(device, field)) if device.HasField(field) else None  # type: ignore[arg-type]
