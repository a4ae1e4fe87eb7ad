"""Reads the present state for the page: what ListPools and ListJobs tell, bounded for a screen.

Lists are bounded before anything is made of them: a look costs O(rows shown), and O(pools) for the
counts, however many jobs wait or are kept.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.job import Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Outcome
from orchestrator_core.core.pool import Pool as CorePool
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Priority
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.status.model import (
    Device,
    EndedJob,
    Pool,
    Queue,
    RunningJob,
    Server,
    Status,
    WaitingJob,
)
from orchestrator_core.wire.pools import PoolView, pool_to_proto
from orchestrator_core.wire.views import JobView

WAITING_SHOWN = 50
RUNNING_SHOWN = 100
ENDED_SHOWN = 50
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
View = Callable[[Job], JobView]


class StatusReader:
    """Reads one orchestrator. `view` tells of a job what the job does not know itself."""

    def __init__(self, runtime: Runtime, view: View, version: str) -> None:
        self._runtime = runtime
        self._view = view
        self._version = version

    async def read(self) -> Status:
        """The state at this moment; an outcome is shown once it is durable, as by ListJobs."""
        core = self._runtime.core
        ended = list(islice(core.ended(), ENDED_SHOWN))
        trouble = ""
        try:
            await self._runtime.settled()
        except RefusalError:
            ended, trouble = [], _STORE_SILENT
        # Meanwhile the journal may have refused the end of one, which then goes on.
        over = [job for job in ended if not job.live and job.job_id in core.jobs]
        return self._status(over, trouble)

    def _status(self, over: list[Job], trouble: str) -> Status:
        core, now_ms = self._runtime.core, self._runtime.clock.now_ms()
        pools, reported = core.pools, self._runtime.hosts.reported
        shown = heapq.nsmallest(POOLS_SHOWN, pools.values(), key=_trouble_first)
        slots = [(pool.snapshot.slots_total, pool.slots_free()) for pool in _ready(core)]
        return Status(
            at_ms=now_ms,
            server=Server(self._version, core.draining, trouble),
            queue=Queue(
                core.queue_depth(Priority.INTERACTIVE),
                core.queue_depth(Priority.BATCH),
                core.config.queue_capacity,
                core.config.queue_policy.value,
            ),
            waiting=tuple(_waiting(self._view(job)) for job in _line(core)),
            running=tuple(
                _running(self._view(job), core.expected_tokens(job))
                for job in islice(core.running(), RUNNING_SHOWN)
            ),
            running_total=core.live_attempts,
            ended=tuple(_ended(job, now_ms) for job in over),
            ended_total=core.ended_count,
            pools=tuple(
                sorted((_pool(core, pool, reported, now_ms) for pool in shown), key=_by_id)
            ),
            pools_total=len(pools),
            pools_ready=len(slots),
            slots_total=sum(total for total, _ in slots),
            slots_free=sum(free for _, free in slots),
            devices=tuple(islice(_devices(shown, reported, now_ms), DEVICES_SHOWN)),
        )


def _line(core: Core) -> Iterator[Job]:
    """The first of those who wait, INTERACTIVE before BATCH, each in offer order."""
    return islice(chain(*map(core.waiting, Priority)), WAITING_SHOWN)


def _waiting(view: JobView) -> WaitingJob:
    job, spec = view.job, view.job.spec
    return WaitingJob(
        job_id=spec.job_id,
        session_id=spec.session_id,
        priority=spec.priority.name.lower(),
        model_id=spec.needs.model_id,
        position=view.queue_position,
        attempts=job.attempts_made,
        waited_ms=max(0, view.now_ms - job.accepted_ms),
        starts_in_ms=view.predicted_start_ms,
        ends_in_ms=view.predicted_end_ms,
        on_time_ratio=view.on_time_probability,
    )


def _running(view: JobView, expected_tokens: int) -> RunningJob:
    job, spec, attempt = view.job, view.job.spec, view.job.attempt
    assert attempt is not None, "a running job has an attempt"
    return RunningJob(
        job_id=spec.job_id,
        session_id=spec.session_id,
        priority=spec.priority.name.lower(),
        model_id=spec.needs.model_id,
        pool_id=attempt.pool_id,
        state="reconnecting" if attempt.detached else job.state.value,
        attempt=attempt.number,
        pieces=job.pieces,
        expected_tokens=expected_tokens,
        runs_for_ms=max(0, view.now_ms - attempt.sent_ms),
        ends_in_ms=view.predicted_end_ms or 0,
        on_time_ratio=view.on_time_probability,
    )


def _ended(job: Job, now_ms: int) -> EndedJob:
    spec, usage = job.spec, job.usage
    ended_ms = now_ms if job.ended_ms is None else job.ended_ms
    return EndedJob(
        job_id=spec.job_id,
        session_id=spec.session_id,
        priority=spec.priority.name.lower(),
        model_id=spec.needs.model_id,
        pool_id=_last_pool(job),
        state=job.state.value,
        why=_why(job.outcome),
        attempts=job.attempts_made,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        queued_ms=usage.queue_time_ms,
        first_token_ms=usage.first_token_ms,
        took_ms=max(0, ended_ms - job.accepted_ms),
        ended_ago_ms=max(0, now_ms - ended_ms),
    )


def _why(outcome: Outcome | None) -> str:
    """The reason alone: the sentence of an error may hold words of an engine."""
    if outcome is None:
        return ""
    if outcome.error is not None:
        return outcome.error.reason.value
    return "" if outcome.finish is None else outcome.finish.value


def _last_pool(job: Job) -> str:
    if job.attempt is not None:
        return job.attempt.pool_id
    return job.decisions[-1].pool_id if job.decisions else ""


def _ready(core: Core) -> list[CorePool]:
    return [
        pool
        for pool in core.pools.values()
        if pool.connected and pool.snapshot.state is PoolState.READY
    ]


def _trouble_first(pool: CorePool) -> tuple[bool, str]:
    """Where not all pools fit, those that need somebody's eyes are shown."""
    well = pool.connected and pool.snapshot.state is PoolState.READY and not pool.unconfirmed
    return well, pool.snapshot.pool_id


def _by_id(pool: Pool) -> str:
    return pool.pool_id


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
    """Each device once, by host and id, as its youngest snapshot tells of it."""
    users: dict[tuple[str, str], dict[str, CorePool]] = {}
    for pool in sorted(pools, key=lambda p: (p.snapshot.host_id, p.snapshot.pool_id)):
        snapshot = reported.get(pool.snapshot.pool_id)
        for device in () if snapshot is None else snapshot.devices:
            sharing = users.setdefault((pool.snapshot.host_id, device.device_id), {})
            sharing[pool.snapshot.pool_id] = pool
    for (host_id, device_id), sharing in users.items():
        latest = max(sharing.values(), key=lambda pool: pool.as_of_ms)
        snapshot = reported[latest.snapshot.pool_id]
        device = next(d for d in snapshot.devices if d.device_id == device_id)
        yield _device(device, host_id, latest, tuple(sharing), now_ms)


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
