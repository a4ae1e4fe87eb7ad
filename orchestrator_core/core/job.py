"""Jobs and attempts: what was asked for, and where it stands."""

import enum
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Final

from orchestrator_core.core.decision import DECISIONS_KEPT, Decision
from orchestrator_core.core.outcome import NO_USAGE, Outcome, Usage
from orchestrator_core.core.records import plain_init
from orchestrator_core.core.states import TERMINAL, AttemptState, JobState


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
    that the job needs in any case, rounded up to a size that pools offer.
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
    asked for when it opened the session, or repeats.
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


@plain_init
@dataclass(frozen=True, slots=True)
class Shape:
    """Expected size of a job in tokens; both numbers are finite and not negative."""

    prompt_tokens: float
    output_tokens: float


NO_SHAPE = Shape(0.0, 0.0)


@dataclass(slots=True)
class Attempt:
    """One try of a job on one incarnation of a pool. Holds a slot there until ENDED.

    `first_output_area` is the pool's `busy_area` at the first output. `mode` says whether it
    generates again what an earlier one delivered, or goes on from there; `kv_warmth` that its pool
    found keys and values of the session. A `recovered` attempt was
    read from the journal: it is `detached` until its host is back, and its times teach nothing. One
    that is `ended_at_host` holds no slot any more: only its end is yet to be read. `cancels` counts
    how often its host was told to stop it.
    """

    job_id: str
    number: int
    pool_id: str
    replica_id: str
    host_id: str
    sent_ms: int
    est_kv_bytes: int = 0
    uncached_tokens: float = 0.0
    predicted_end_ms: int = 0
    state: AttemptState = AttemptState.SENT
    started_ms: int | None = None
    first_output_ms: int | None = None
    first_output_area: int = 0
    last_progress_ms: int = 0
    detached: bool = False
    recovered: bool = False
    ended_at_host: bool = False
    cancels: int = 0
    mode: StartMode = StartMode.FRESH
    kv_warmth: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """(job_id, number), unique for ever."""
        return self.job_id, self.number


@dataclass(slots=True)
class Job:
    """A live or recently ended job.

    `seq` is the arrival number, kept through retries. `delivered` is True when output of an earlier
    attempt may have reached a client. `failures` counts lost attempts; refused ones are not tries.
    `mixed` says that the output came from more than one replica set: token ids then mean nothing.
    `plain_start_ms` is the forecast of its start before corrections, None for a job that was placed
    in the step that accepted it; `shape` is its expected size when it began to wait.
    `declined_offers` counts the slots that it let pass since `declined_since_ms`. A `recovered`
    one was read from the journal: what became of it teaches nothing about what it was told.
    `tokens_charged` is what its client's throttle holds for it, `tokens_served` what fairness has
    counted for it; None where nothing was charged.
    `pieces` of output were relayed, as of the last progress.
    `decisions` are the latest `DECISIONS_KEPT`: a job may be refused any number of times.
    """

    spec: JobSpec
    seq: int
    accepted_ms: int
    state: JobState = JobState.QUEUED
    position_at_admission: int = 1
    predicted_start_ms: int | None = None
    predicted_end_ms: int | None = None
    attempts_made: int = 0
    failures: int = 0
    attempt: Attempt | None = None
    delivered: bool = False
    tried_replicas: set[str] = field(default_factory=set)
    decisions: list[Decision] = field(default_factory=list)
    first_dispatch_ms: int | None = None
    started_ms: int | None = None
    first_output_ms: int | None = None
    ended_ms: int | None = None
    outcome: Outcome | None = None
    usage: Usage = NO_USAGE
    subscribers: int = 0
    replica_set: tuple[str, str, str, str] | None = None
    mixed: bool = False
    unreleased: Attempt | None = None
    refusals: int = 0
    plain_start_ms: int | None = None
    shape: Shape = NO_SHAPE
    declined_offers: int = 0
    declined_since_ms: int | None = None
    tokens_served: float = 0.0
    tokens_charged: int | None = None
    recovered: bool = False
    pieces: int = 0

    @property
    def job_id(self) -> str:
        """Id of the job."""
        return self.spec.job_id

    @property
    def next_mode(self) -> StartMode:
        """How the next attempt begins."""
        if not self.delivered or self.spec.failover is Failover.FAIL:
            return StartMode.FRESH
        return StartMode[self.spec.failover.name]

    @property
    def bound_to(self) -> tuple[str, str, str, str] | None:
        """Replica set to which the next attempt must keep; None: any that is feasible. LO-304.

        A verified replay must give the same bytes. A continuation is announced as what it is: the
        client has agreed to text that another engine goes on with.
        """
        return self.replica_set if self.next_mode is StartMode.VERIFIED_REPLAY else None

    def note_decision(self, decision: Decision) -> None:
        """Keeps a placement, the latest last."""
        self.decisions.append(decision)
        del self.decisions[:-DECISIONS_KEPT]

    def drop_payload(self) -> None:
        """Forgets the prompt."""
        if self.spec.payload:
            self.spec = replace(self.spec, payload=b"")

    @property
    def live(self) -> bool:
        """True until a terminal state is reached."""
        return self.state not in TERMINAL
