# SPDX-License-Identifier: Apache-2.0
"""What the server says about itself and its pools. What is absent is None, never 0."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSet:
    """All pools that may stand in for one another.

    `slots_ready` are those of pools that take work now: jobs that run at once. A job within
    `ctx_min` fits every pool. Every pool has the `extensions` and `quantizations`.
    """

    engine: str
    engine_version: str
    model_id: str
    model_digest: str
    sampler_profile_version: str
    pool_ids: tuple[str, ...]
    slots_total: int
    ctx_max: int
    deterministic: bool
    slots_ready: int = 0
    ctx_min: int = 0
    extensions: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a server, and of this client on it.

    0 sets no limit in `requests_per_min`, `tokens_per_min` and `queued_jobs`, which are the
    caller's own; the others are 0 only when an older server does not tell.
    """

    queue_capacity: int
    message_bytes_max: int
    input_bytes_max: int
    output_bytes_per_job: int
    queue_timeout_ms: int = 0
    wall_timeout_ms: int = 0
    idle_timeout_ms: int = 0
    retention_ms: int = 0
    idempotency_ttl_ms: int = 0
    session_ttl_ms: int = 0
    session_turns_max: int = 0
    requests_per_min: int = 0
    tokens_per_min: int = 0
    queued_jobs: int = 0
    streams_per_connection_max: int = 0
    exchange_jobs_max: int = 0
    artifact_input_bytes_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server can do (ORCH-3095).

    `replica_sets_omitted` counts those that did not fit into its answer; `pools` lists all pools.
    """

    api_version: str
    server_version: str
    queue_policy: str
    limits: Limits
    replica_sets: tuple[ReplicaSet, ...]
    features: tuple[str, ...]
    replica_sets_omitted: int = 0

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Models that some pool has, sorted; it may be unready, or may never have served."""
        return tuple(sorted({each.model_id for each in self.replica_sets}))

    @property
    def models_ready(self) -> tuple[str, ...]:
        """Those of which a job can start now, sorted."""
        return tuple(sorted({each.model_id for each in self.replica_sets if each.slots_ready}))

    def jobs_at_once(self, model_id: str) -> int:
        """Jobs of a model that run at once now; a client that is alone may have so many under way.

        More are accepted while the queue has room, and wait. Pools that share a device count fully.
        """
        return sum(each.slots_ready for each in self.replica_sets if each.model_id == model_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDevice:
    """One device of a pool; what the hardware does not report is None.

    `health` is OK, LOST, RESET_REQUIRED, CRITICAL_ERROR, DRIVER_UNAVAILABLE, NO_ANSWER, or empty
    when it is not known; `health_detail` is a sentence for people.
    """

    device_id: str
    name: str
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    utilization_ratio: float | None
    temperature_celsius: int | None
    health: str = ""
    health_detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDrain:
    """An operator drains a pool: what runs there has until `until`, by the server's clock."""

    began_at: datetime | None
    until: datetime | None
    running_attempts: int


class ReloadOutcome(StrEnum):
    """What became of a reload: see `proto/llamaorch/orchestrator/v1/pool_admin_service.proto`."""

    UNSPECIFIED = "UNSPECIFIED"
    DONE = "DONE"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """A pool after a reload, what became of that, and what went wrong, for people."""

    pool: "Pool"
    outcome: ReloadOutcome
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The orchestrator's view of one pool.

    `perf_scale` is below 1 while a device lowers its clocks to protect itself; `drain` is None
    unless an operator drains the pool.
    """

    pool_id: str
    replica_id: str
    host_id: str
    connected: bool
    state: str
    state_reason: str
    engine: str
    engine_version: str
    model_id: str
    model_digest: str
    slots_total: int
    slots_free: int
    ctx_max: int
    snapshot_age_ms: int
    snapshot_version: int
    devices: tuple[PoolDevice, ...]
    tokens_per_s: float | None
    perf_scale: float = 1.0
    drain: PoolDrain | None = None
