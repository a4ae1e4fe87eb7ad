"""Outcomes: how a job ends, why a request is refused. Closed sets, mapped to codes in one table."""

import enum
from dataclasses import dataclass, field

from orchestrator_core.core.decision import Exclusion
from orchestrator_core.core.plain_init import plain_init


class Finish(enum.Enum):
    """Why generation stopped regularly."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Reason(enum.Enum):
    """Stable reasons of design §4; each has one row in the error table (`wire.errors`)."""

    ADMISSION_REJECT = "ADMISSION_REJECT"
    QUEUE_FULL_DROP_LRU = "QUEUE_FULL_DROP_LRU"
    INVALID_PARAMS = "INVALID_PARAMS"
    INCOMPATIBLE_MODEL = "INCOMPATIBLE_MODEL"
    INCOMPATIBLE_ENGINE = "INCOMPATIBLE_ENGINE"
    INCOMPATIBLE_DEVICE_MASK = "INCOMPATIBLE_DEVICE_MASK"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_RETIRED = "MODEL_RETIRED"
    MODEL_IN_USE = "MODEL_IN_USE"
    REVISION_CONFLICT = "REVISION_CONFLICT"
    POOL_UNREADY = "POOL_UNREADY"
    POOL_UNAVAILABLE = "POOL_UNAVAILABLE"
    REPLICA_EXHAUSTED = "REPLICA_EXHAUSTED"
    DEADLINE = "DEADLINE"
    DECODE_TIMEOUT = "DECODE_TIMEOUT"
    WORKER_RESET = "WORKER_RESET"
    ENGINE_ERROR = "ENGINE_ERROR"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    DUPLICATE = "DUPLICATE"
    NOT_FOUND = "NOT_FOUND"
    RESUME_WINDOW = "RESUME_WINDOW"
    ARTIFACT_IN_USE = "ARTIFACT_IN_USE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request and what to change."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A typed error. `retry_after_ms` is None when a retry does not help. ORCH-3016, ORCH-3017."""

    reason: Reason
    message: str
    retry_after_ms: int | None = None
    policy_label: str = ""
    engine: str = ""
    pool_id: str = ""
    resource: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    shortfalls: tuple[Exclusion, ...] = ()


@plain_init
@dataclass(frozen=True, slots=True)
class Usage:
    """What a job took; None where not known. Times in milliseconds."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    queue_time_ms: int | None = None
    first_token_ms: int | None = None
    decode_time_ms: int | None = None


NO_USAGE = Usage()


@plain_init
@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: a finish, or an error. Exactly one of the two is set."""

    finish: Finish | None = None
    error: Refusal | None = None
    text_bytes: int | None = None
    text_digest: int | None = None
