"""What the status page shows: everything that leaves the process through it, field by field.

Never prompts, output, labels, tokens or error texts of engines. None is what is not known, or not
reported by the hardware; the page shows it as absent. Times are milliseconds, and counted from the
instant at which the record was made; memory is bytes, rates are tokens per second, ratios are 0 to
1. Lists hold the first of what there is, and the number beside them how much there is.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Server:
    """The orchestrator itself; `trouble` is one sentence when something keeps it from working."""

    version: str
    draining: bool
    trouble: str


@dataclass(frozen=True, slots=True)
class Queue:
    """Jobs that wait, of how many that may."""

    interactive: int
    batch: int
    capacity: int
    policy: str


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits. `position` 1 is next among its like; the predictions may be unknown."""

    job_id: str
    session_id: str
    priority: str
    model_id: str
    position: int | None
    attempts: int
    waited_ms: int
    starts_in_ms: int | None
    ends_in_ms: int | None
    on_time_ratio: float | None


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that holds a slot. `pieces` of output have come; most pieces are one token."""

    job_id: str
    session_id: str
    priority: str
    model_id: str
    pool_id: str
    state: str
    attempt: int
    pieces: int
    expected_tokens: int
    runs_for_ms: int | None
    ends_in_ms: int | None
    on_time_ratio: float | None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that is over. `why` is the finish reason, or the reason of the error table."""

    job_id: str
    session_id: str
    priority: str
    model_id: str
    pool_id: str
    state: str
    why: str
    attempts: int
    tokens_in: int | None
    tokens_out: int | None
    queued_ms: int | None
    first_token_ms: int | None
    took_ms: int
    ended_ago_ms: int


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool. `perf_scale` is below 1 while a device lowers its clocks; the speeds include it."""

    pool_id: str
    host_id: str
    state: str
    reason: str
    engine: str
    engine_version: str
    model_id: str
    slots_total: int
    slots_free: int
    ctx_max: int
    decode_tokens_per_s: float
    prompt_tokens_per_s: float | None
    first_token_ms: int
    perf_scale: float
    kv_cache_ratio: float | None
    snapshot_age_ms: int
    snapshot_version: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a host. All readings are None while the host is not connected."""

    device_id: str
    host_id: str
    name: str
    kind: str
    health: str
    health_detail: str
    connected: bool
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    utilization_ratio: float | None
    temperature_celsius: int | None
    power_milliwatts: int | None
    pool_ids: tuple[str, ...]
    age_ms: int


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that the page shows but explanations. `at_ms` is wall time since 1970."""

    at_ms: int
    server: Server
    queue: Queue
    waiting: tuple[WaitingJob, ...]
    running: tuple[RunningJob, ...]
    running_total: int
    ended: tuple[EndedJob, ...]
    ended_total: int
    pools: tuple[Pool, ...]
    pools_total: int
    pools_ready: int
    slots_total: int
    slots_free: int
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that a pool lacks, with both sides as text."""

    reason: str
    required: str
    offered: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """Pools that could not take the job, and all that each of them lacks; `pool_ids` are a few."""

    pool_ids: tuple[str, ...]
    pools_total: int
    lacks: tuple[Lack, ...]


@dataclass(frozen=True, slots=True)
class WaitCause:
    """One thing that keeps pools from a waiting job; `remedy` is empty where only waiting helps."""

    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool that could. The score is `delay_ms` + `prompt_ms` + `decode_ms`, less is better."""

    pool_id: str
    score_ms: int
    delay_ms: int
    prompt_ms: int
    decode_ms: int
    kv_warm: bool
    slots_free: int
    headroom_bytes: int | None
    tokens_per_s: float
    perf_scale: float
    snapshot_age_ms: int
    snapshot_version: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One placement, the winner first; `complete` is False where some were not kept."""

    attempt: int
    decided_at_ms: int
    pool_id: str
    decided_by: str
    waited_ms: int
    declined_offers: int
    candidates: tuple[Candidate, ...]
    candidates_total: int
    excluded: tuple[Excluded, ...]
    excluded_total: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job runs where it runs, or why it waits; the latest decision first."""

    job_id: str
    state: str
    priority: str
    model_id: str
    decisions: tuple[Decision, ...]
    wait_summary: str
    wait_remedy: str
    wait_causes: tuple[WaitCause, ...]
    trace_id: str
