"""Configuration of supervision: restarts, self-test, circuit breaker, logs of engines."""

from pydantic import Field, model_validator

from pool_managerd.config.table import Milliseconds, Table


class BackoffTable(Table):
    """Exponential backoff: doubles from `initial_ms` to `cap_ms`, half of it random."""

    initial_ms: Milliseconds = Field(default=200, description="First wait.")
    cap_ms: Milliseconds = Field(default=10_000, description="Longest wait.")

    @model_validator(mode="after")
    def _ordered(self) -> "BackoffTable":
        if self.cap_ms < self.initial_ms:
            raise ValueError("cap_ms must not be below initial_ms")
        return self


class SelfTestTable(Table):
    """The self-test of every engine before it is READY. ORCH-3049."""

    enabled: bool = Field(default=True, description="Generate and cancel before READY.")
    timeout_ms: Milliseconds = Field(default=60_000, description="Longest self-test.")


class CircuitTable(Table):
    """When an engine that lives but fails gets no more work. ORCH-3040."""

    errors: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Failed attempts that open it: n of the last 2n - 1.",
    )
    window_ms: Milliseconds = Field(default=60_000, description="Window of those attempts.")
    pause: BackoffTable = Field(
        default=BackoffTable(initial_ms=2_000, cap_ms=60_000),
        description="Wait before a probe.",
    )
    probes_max: int = Field(
        default=5, ge=1, le=1000, description="Failed probes in a row after which it is restarted."
    )


class EngineLogsTable(Table):
    """What is kept of the output of engines that run below the pool manager."""

    lines: int = Field(default=200, ge=1, le=10_000, description="Last lines kept in memory.")
    directory: str = Field(
        default="",
        description="Where POOL_ID.log is written; relative to this file; empty: no files.",
    )
    file_bytes: int = Field(
        default=10 << 20, ge=4096, le=1 << 34, description="Size at which a file is put aside."
    )
    files: int = Field(default=3, ge=1, le=100, description="Files put aside that are kept.")


class SupervisionTable(Table):
    """How engines are watched, restarted and stopped. ORCH-3038, ORCH-3053."""

    backoff: BackoffTable = Field(
        default=BackoffTable(initial_ms=500, cap_ms=60_000),
        description="Wait before an engine restart.",
    )
    preload_timeout_ms: Milliseconds = Field(
        default=600_000, description="Longest start of an engine."
    )
    stop_timeout_ms: Milliseconds = Field(default=15_000, description="Longest stop of an engine.")
    health_interval_ms: Milliseconds = Field(
        default=2_000, description="Time between two health checks."
    )
    health_timeout_ms: int = Field(
        default=1_000, ge=1, le=30_000, description="Longest answer to a health check."
    )
    health_failures: int = Field(
        default=3, ge=1, le=100, description="Failed checks before a restart."
    )
    storm_failures: int = Field(default=5, ge=1, le=1000, description="Failures that halt a pool.")
    storm_window_ms: Milliseconds = Field(default=300_000, description="Window of those failures.")
    storm_remind_ms: Milliseconds = Field(
        default=60_000, description="Until the log says again why; doubles, to an hour."
    )
    stable_ms: Milliseconds = Field(default=60_000, description="Service that resets the backoff.")
    freed_memory_wait_ms: int = Field(
        default=5_000,
        ge=0,
        le=600_000,
        description="Wait for memory that drivers give back late, before a pool does not fit.",
    )
    cancel_confirm_ms: Milliseconds = Field(
        default=5_000, description="Wait for a cancelled generation before its engine is restarted."
    )
    self_test: SelfTestTable = Field(default=SelfTestTable(), description="Before READY.")
    circuit: CircuitTable = Field(default=CircuitTable(), description="Circuit breaker.")
