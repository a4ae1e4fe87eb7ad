"""Bounds and policies of the core, frozen."""

import enum
from dataclasses import dataclass, fields


class QueuePolicy(enum.Enum):
    """What happens when the queue is full. ORCH-3005."""

    REJECT = "reject"
    DROP_LRU = "drop-lru"
    SHED_LOW_PRIORITY = "shed-low-priority"
    FAIL_FAST = "fail-fast"


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Every bound of the core. Times in milliseconds.

    Raises:
        ValueError: when a bound is not positive; the field is named.
    """

    queue_capacity: int = 100
    queue_policy: QueuePolicy = QueuePolicy.REJECT
    lanes_max: int = 256
    pools_max: int = 10_000
    finished_jobs_max: int = 10_000
    retention_ms: int = 600_000
    attempts_max: int = 3
    stale_after_ms: int = 5_000
    reattach_grace_ms: int = 10_000
    queue_timeout_ms: int = 3_600_000
    wall_timeout_ms: int = 3_600_000
    idle_timeout_ms: int = 120_000
    disconnect_grace_ms: int = 10_000
    refusal_backoff_ms: int = 250
    refusal_backoff_max_ms: int = 10_000
    retry_after_min_ms: int = 100
    retry_after_max_ms: int = 60_000
    idempotency_ttl_ms: int = 86_400_000
    idempotency_max: int = 100_000
    session_ttl_ms: int = 600_000
    sessions_max: int = 10_000
    batch_every: int = 8
    performance_scoring: bool = True

    def __post_init__(self) -> None:
        """Refuses bounds that are not positive."""
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{spec.name} must be positive, is {value}")
