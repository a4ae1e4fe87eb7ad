"""Bounds and policies of the core, frozen."""

import enum
from dataclasses import dataclass, fields


class QueuePolicy(enum.Enum):
    """What happens when the queue is full. ORCH-3005."""

    REJECT = "reject"
    DROP_LRU = "drop-lru"
    SHED_LOW_PRIORITY = "shed-low-priority"
    FAIL_FAST = "fail-fast"


class Scorer(enum.Enum):
    """How candidates are compared, see `scores`. LO-202."""

    PREDICTED_END = "predicted_end"
    LATENCY_TARGET = "latency_target"
    OFF = "off"


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
    class_weights: tuple[int, int] | None = None
    token_fairness: bool = False
    performance_scoring: bool = True
    scorer: Scorer = Scorer.PREDICTED_END
    decline_offers: bool = True
    decline_max_ms: int = 30_000

    def __post_init__(self) -> None:
        """Refuses bounds that are not positive."""
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{spec.name} must be positive, is {value}")
        if self.class_weights is not None and min(self.class_weights) < 1:
            raise ValueError(f"class_weights must be positive, are {self.class_weights}")

    @property
    def effective_scorer(self) -> Scorer:
        """The scorer, unless performance scoring is off."""
        return self.scorer if self.performance_scoring else Scorer.OFF

    @property
    def turns(self) -> tuple[int, int]:
        """Interactive and batch placements that take turns while both classes wait. LO-103."""
        return self.class_weights or (self.batch_every, 1)
