"""What was asked for: values that travel and never change."""

import enum
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from orchestrator_core.core.catalog_model import FromCatalog
from orchestrator_core.core.plain_init import plain_init


class Priority(enum.IntEnum):
    """Class in which a job queues; the lower value is offered slots first. ORCH-3004."""

    INTERACTIVE = 1
    BATCH = 2

    # That of an enum's name is computed in Python each time; classes are keys of hot tables.
    __hash__ = int.__hash__


# In Python 3.11 looking a member up on its class takes 0.14 µs; every job goes by these many times.
INTERACTIVE: Final = Priority.INTERACTIVE
BATCH: Final = Priority.BATCH


class Failover(enum.Enum):
    """What happens when an engine dies after output was delivered. LO-304."""

    VERIFIED_REPLAY = "verified_replay"
    CONTINUE = "continue"
    FAIL = "fail"


class StartMode(enum.Enum):
    """How an attempt relates to the output of earlier ones."""

    FRESH = "fresh"
    VERIFIED_REPLAY = "verified_replay"
    CONTINUE = "continue"


class _Hashed:
    """Room for a hash that is computed once. Not a field: it differs from process to process."""

    __slots__ = ("_hash",)
    _hash: int


@dataclass(frozen=True, slots=True)
class Needs(_Hashed):
    """What a pool must statically offer; empty or None does not restrict. Equal needs share a lane.

    `min_compute_cap` is (major, minor), compared as numbers: (8, 10) is newer than (8, 9).
    `required_ctx` is the context that the client asked for, `certain_ctx` what the guardrails found
    that the job needs in any case, rounded up to a size that pools offer. The catalog adds
    `engines`, one of which it must be, and `listed_digest`, the one that a pool may not contradict.
    """

    model_id: str
    engine: str = ""
    engine_version: str = ""
    model_digest: str = ""
    sampler_profile_version: str = ""
    deterministic: bool = False
    min_vram_bytes: int | None = None
    quantization: str = ""
    min_compute_cap: tuple[int, int] | None = None
    required_extensions: tuple[str, ...] = ()
    device_mask: tuple[str, ...] = ()
    required_ctx: int | None = None
    certain_ctx: int | None = None
    engines: tuple[str, ...] = ()
    listed_digest: str = ""

    def __hash__(self) -> int:
        """Needs are keys of hot tables: a lane's needs are looked up several times per job."""
        try:
            return self._hash
        except AttributeError:
            made = hash(_needs(self))
            _set(self, "_hash", made)
            return made


_needs = attrgetter(*(need.name for need in fields(Needs)))
_set = object.__setattr__


@dataclass(frozen=True, slots=True)
class Budgets:
    """What one job or a session may spend, or has left; None is unbounded.

    `tokens` are prompt and output together, `time_ms` is the time of one attempt of a job at a
    pool, `cost_micros` are millionths of the currency unit.
    """

    tokens: int | None = None
    time_ms: int | None = None
    cost_micros: int | None = None


NO_BUDGETS = Budgets()


@plain_init
@dataclass(frozen=True, slots=True)
class JobSpec:
    """A validated request. `payload` is what the pool needs and the core never looks into.

    It is empty once the job has ended; `labels`, which are the client's too, stay. `deadline_ms` is
    an instant of the core's clock, `queue_timeout_ms` a span. `digest` covers every field that a
    repeated request must have in common with the first. `session_budgets` are those that the client
    asked for when it opened the session, or repeats. `input_artifact` is the artifact that holds
    the input; empty where the payload does. The catalog adds `catalog_kv_bytes`, what the
    required context takes by the model's dimensions, and `from_catalog`, None for a model that it
    does not have.
    """

    job_id: str
    needs: Needs
    priority: Priority = Priority.INTERACTIVE
    identity: str = ""
    request_id: str = ""
    session_id: str = ""
    digest: str = ""
    payload: bytes = b""
    labels: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    traceparent: str = ""
    correlation_id: str = ""
    prompt_bytes: int = 0
    max_tokens: int | None = None
    expected_tokens: int | None = None
    est_kv_bytes: int | None = None
    deadline_ms: int | None = None
    queue_timeout_ms: int | None = None
    kv_reuse: bool = False
    failover: Failover = Failover.FAIL
    cancel_on_disconnect: bool = False
    budgets: Budgets = NO_BUDGETS
    session_budgets: Budgets = NO_BUDGETS
    input_artifact: str = ""
    catalog_kv_bytes: int | None = None
    from_catalog: FromCatalog | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class Shape:
    """Expected size of a job in tokens; both numbers are finite and not negative."""

    prompt_tokens: float
    output_tokens: float


NO_SHAPE = Shape(0.0, 0.0)
