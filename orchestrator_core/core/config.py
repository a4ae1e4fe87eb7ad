"""Bounds and policies of the core, frozen."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields


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

    # That of an enum's name is computed in Python each time; each placement looks its scorer up.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Limits:
    """What one identity may do; 0 sets no limit."""

    requests_per_min: int = 0
    tokens_per_min: int = 0
    queued_jobs: int = 0


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ThrottleConfig:
    """Limits of everybody, those of single identities, and how many identities are remembered.

    Raises:
        ValueError: when a number is negative, or nobody could be remembered.
    """

    default: Limits = NO_LIMITS
    identities: Mapping[str, Limits] = field(default_factory=dict)
    identities_max: int = 10_000

    def __post_init__(self) -> None:
        """Refuses negative limits."""
        for limits in (self.default, *self.identities.values()):
            numbers = (limits.requests_per_min, limits.tokens_per_min, limits.queued_jobs)
            if min(numbers) < 0:
                raise ValueError(f"limits must not be negative: {limits}")
        if self.identities_max < 1:
            raise ValueError(f"identities_max must be positive, is {self.identities_max}")

    @property
    def limiting(self) -> bool:
        """True when anybody is limited at all."""
        limits = self.default
        everybody = limits.requests_per_min or limits.tokens_per_min or limits.queued_jobs
        return bool(everybody or self.identities)

    def limits(self, identity: str) -> Limits:
        """The limits of one identity."""
        return self.identities.get(identity, self.default)


@dataclass(frozen=True, slots=True)
class Price:
    """Millionths of the currency unit per 1,000 tokens, of the prompt and of the output.

    Raises:
        ValueError: when one is negative.
    """

    input_micros: int = 0
    output_micros: int = 0

    def __post_init__(self) -> None:
        """Refuses a negative price."""
        if min(self.input_micros, self.output_micros) < 0:
            raise ValueError(f"a price must not be negative, is {self}")

    def __bool__(self) -> bool:
        """False where nothing costs anything: there is no price."""
        return bool(self.input_micros or self.output_micros)

    def cost_micros(self, prompt_tokens: int, output_tokens: int) -> int:
        """What so many tokens cost, rounded up to a whole millionth."""
        thousandfold = prompt_tokens * self.input_micros + output_tokens * self.output_micros
        return -(-thousandfold // TOKENS_PER_PRICE)

    def affordable(self, cost_micros: int, prompt_tokens: int) -> int | None:
        """Most tokens of output that a cost allows after a prompt; None: any number.

        Negative when it does not even allow the prompt.
        """
        left = cost_micros * TOKENS_PER_PRICE - prompt_tokens * self.input_micros
        if left < 0:
            return -1
        return left // self.output_micros if self.output_micros else None


TOKENS_PER_PRICE = 1_000
NO_PRICE = Price()


@dataclass(frozen=True, slots=True)
class Guardrails:
    """`token_bytes_max`: most bytes of text that one token stands for; see docs/admission.md.

    `price` is that of models which have none of their own in `prices`.

    Raises:
        ValueError: when a number is out of range.
    """

    token_bytes_max: int = 256
    price: Price = NO_PRICE
    prices: Mapping[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a token without bytes."""
        if self.token_bytes_max < 1:
            raise ValueError(f"token_bytes_max must be positive, is {self.token_bytes_max}")

    def price_of(self, model_id: str) -> Price:
        """What tokens of a model cost."""
        return self.prices.get(model_id, self.price)


@dataclass(frozen=True, slots=True)
class SessionBudgets:
    """What every session may spend at most, whatever its client asks for; 0 sets no limit.

    Raises:
        ValueError: when a number is negative.
    """

    tokens: int = 0
    time_ms: int = 0
    cost_micros: int = 0

    def __post_init__(self) -> None:
        """Refuses negative budgets."""
        if min(self.tokens, self.time_ms, self.cost_micros) < 0:
            raise ValueError(f"budgets of sessions must not be negative: {self}")


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Every bound of the core. Times in milliseconds.

    `min_on_time_probability` is what `deadline_aware` asks for, more than 0 and at most 1.
    `catalog_required` refuses jobs of models that are not in the catalog; with
    `catalog_strict_digest` a pool that reports no digest does not serve a model that has one there.

    Raises:
        ValueError: when a bound is not positive or out of range; the field is named.
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
    host_retention_ms: int = 86_400_000
    cancel_timeout_ms: int = 10_000
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
    session_turns_max: int = 8
    session_budgets: SessionBudgets = field(default_factory=SessionBudgets)
    batch_every: int = 8
    class_weights: tuple[int, int] | None = None
    token_fairness: bool = False
    performance_scoring: bool = True
    scorer: Scorer = Scorer.PREDICTED_END
    decline_offers: bool = True
    decline_max_ms: int = 30_000
    deadline_aware: bool = False
    min_on_time_probability: float = 0.1
    catalog_required: bool = False
    catalog_strict_digest: bool = False
    catalog_models_max: int = 1_000
    throttle: ThrottleConfig = field(default_factory=ThrottleConfig)
    guardrails: Guardrails = field(default_factory=Guardrails)

    def __post_init__(self) -> None:
        """Refuses bounds that are not positive."""
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{spec.name} must be positive, is {value}")
        if self.class_weights is not None and min(self.class_weights) < 1:
            raise ValueError(f"class_weights must be positive, are {self.class_weights}")
        if not 0.0 < self.min_on_time_probability <= 1.0:
            chance = self.min_on_time_probability
            raise ValueError(f"min_on_time_probability must be in (0, 1], is {chance}")

    @property
    def effective_scorer(self) -> Scorer:
        """The scorer, unless performance scoring is off."""
        return self.scorer if self.performance_scoring else Scorer.OFF

    @property
    def turns(self) -> tuple[int, int]:
        """Interactive and batch placements that take turns while both classes wait. LO-103."""
        return self.class_weights or (self.batch_every, 1)
