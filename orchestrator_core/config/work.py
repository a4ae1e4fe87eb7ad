"""Settings of jobs, their sessions, and the pools that run them."""

from typing import Literal

from pydantic import Field

from orchestrator_core.config.table import DAY_MS, LIMIT_MAX, Live, Milliseconds, Table


class PlacementTable(Table):
    """Choice of a pool. ORCH-3010, ORCH-3012, LO-202."""

    performance_scoring: Live[bool] = Field(
        default=True, description="Predicted end decides; false: only load and memory do."
    )
    scorer: Live[Literal["predicted_end", "latency_target"]] = Field(
        default="predicted_end",
        description="What makes a pool better; latency_target: slowest that meets the deadline.",
    )
    decline_offers: Live[bool] = Field(
        default=True,
        description="A job may let a slow slot pass when waiting for a faster one ends it sooner.",
    )
    decline_max_ms: Live[Milliseconds] = Field(
        default=30_000, description="Longest time for which a job lets slots pass."
    )
    stale_after_ms: Live[Milliseconds] = Field(
        default=5_000, description="Age at which a snapshot no longer counts."
    )
    refusal_backoff_ms: Live[Milliseconds] = Field(
        default=250, description="First rest of a pool that refused."
    )
    refusal_backoff_max_ms: Live[Milliseconds] = Field(default=10_000, description="Longest rest.")


class JobsTable(Table):
    """Limits of one job and of all of them. OC-CORE-1022, LO-302."""

    wall_timeout_ms: Live[Milliseconds] = Field(
        default=3_600_000, description="Longest time on a pool."
    )
    idle_timeout_ms: Live[Milliseconds] = Field(
        default=120_000,
        ge=5_000,
        description="Longest time without output; progress is told once a second.",
    )
    disconnect_grace_ms: Live[Milliseconds] = Field(
        default=10_000, description="Wait before a job is cancelled to which nobody listens."
    )
    retention_ms: Live[Milliseconds] = Field(
        default=600_000, description="How long an ended job is kept."
    )
    finished_max: Live[int] = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Ended jobs that are kept; if room is short, a quarter that never ran.",
    )
    attempts_max: Live[int] = Field(default=3, ge=1, le=100, description="Attempts of one job.")
    input_bytes_max: Live[int] = Field(
        default=3 << 20,
        ge=1_024,
        le=3_670_016,
        description="Largest request; a message holds 4 MiB.",
    )
    output_bytes_per_job: Live[int] = Field(
        default=1 << 20, ge=4_096, le=1 << 30, description="Encoded output buffered for one job."
    )
    output_bytes_total: Live[int] = Field(
        default=256 << 20,
        ge=4_096,
        le=1 << 40,
        description="Memory for buffered output in all, with about 150 bytes per batch of tokens.",
    )
    idempotency_ttl_ms: Live[int] = Field(
        default=DAY_MS, ge=1, le=30 * DAY_MS, description="How long a request_id is remembered."
    )
    idempotency_max: Live[int] = Field(
        default=100_000, ge=1, le=10_000_000, description="Remembered requests."
    )


class SessionsTable(Table):
    """Sessions: how long, how many turns, what they may spend. ORCH-3021, ORCH-3099."""

    ttl_ms: Live[Milliseconds] = Field(
        default=600_000, description="How long a silent session is remembered."
    )
    turns_max: Live[int] = Field(
        default=8, ge=1, le=10_000, description="Jobs of one session; the next one is refused."
    )
    max: Live[int] = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Sessions that are remembered; the one idle for longest goes first.",
    )
    budget_tokens: Live[int] = Field(
        default=0,
        ge=0,
        le=LIMIT_MAX,
        description="Most tokens of a session, whatever it asks for; 0: no limit.",
    )
    budget_time_ms: Live[int] = Field(
        default=0,
        ge=0,
        le=LIMIT_MAX,
        description="Most time of a session on pools; 0: no limit.",
    )
    budget_cost_micros: Live[int] = Field(
        default=0,
        ge=0,
        le=LIMIT_MAX,
        description="Most that a session may cost, in millionths of your currency; 0: no limit.",
    )


class PoolsTable(Table):
    """What hosts are told, and how long they are waited for. LO-203."""

    report_interval_ms: Milliseconds = Field(
        default=1_000, description="Longest time between two snapshots of a host."
    )
    heartbeat_timeout_ms: Milliseconds = Field(
        default=5_000, description="Silence after which a connection counts as lost."
    )
    send_window_bytes: int = Field(
        default=256 << 10, ge=1_024, le=1 << 26, description="Unacknowledged output of a host."
    )
    reattach_grace_ms: Milliseconds = Field(
        default=10_000, description="Wait for a lost host before its attempts count as lost."
    )
    retention_ms: Live[Milliseconds] = Field(
        default=DAY_MS,
        description="How long the pools of a lost host are kept. Until then jobs that only they"
        " could run are accepted, and wait.",
    )
    cancel_timeout_ms: Live[Milliseconds] = Field(
        default=10_000,
        description="Wait for a host to confirm a cancel before it is sent again. After as long"
        " again the pool gets no more jobs until it is confirmed. Longer than the host's own"
        " `cancel_confirm_ms`.",
    )
    max: Live[int] = Field(default=10_000, ge=1, le=100_000, description="Pools that may register.")
    drain_timeout_ms: Live[Milliseconds] = Field(
        default=600_000,
        description="How long running attempts of a drained pool may go on, unless the drain says.",
    )
    watchers_max: Live[int] = Field(
        default=64, ge=1, le=10_000, description="Readers that may watch the pools at once."
    )
