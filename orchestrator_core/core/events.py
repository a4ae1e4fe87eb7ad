"""Inputs of the core. Everything that happens outside arrives as one of these."""

import enum
from dataclasses import dataclass

from orchestrator_core.core.catalog_model import ModelCard, ModelState
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.outcome import NO_USAGE, Finish, Refusal, Usage
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec


class AttemptErrorKind(enum.Enum):
    """How an attempt failed, as the pool reports it.

    OUTPUT_LOST no pool reports: what the attempt was to continue is no longer held on this side.
    """

    ENGINE_DIED = "engine_died"
    ENGINE_ERROR = "engine_error"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    TIMEOUT = "timeout"
    REPLAY_MISMATCH = "replay_mismatch"
    DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    OUTPUT_LOST = "output_lost"


@plain_init
@dataclass(frozen=True, slots=True)
class AttemptError:
    """Why an attempt failed; `message` holds no prompt, output or secret."""

    kind: AttemptErrorKind
    message: str


@plain_init
@dataclass(frozen=True, slots=True)
class EnqueueRequested:
    """A validated job arrived. `reply_to` names the caller in the replies.

    With `stale` it comes too late to be a new one: that is the answer unless it repeats a request.
    """

    spec: JobSpec
    reply_to: int
    stale: Refusal | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody cancels a job. `why` labels the metric: client or disconnect."""

    job_id: str
    reply_to: int
    why: str = "client"


@plain_init
@dataclass(frozen=True, slots=True)
class SubscribersChanged:
    """The number of non-observing subscribers of a job changed. LO-303."""

    job_id: str
    count: int


@plain_init
@dataclass(frozen=True, slots=True)
class OutputAcknowledged:
    """Whoever followed an ended job has all of its output and its outcome. LO-306."""

    job_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class HeldAttempt:
    """An attempt that a re-registering host still holds, with so many bytes of output."""

    job_id: str
    attempt: int
    pool_id: str
    replica_id: str
    ended: bool
    text_bytes: int = 0


@plain_init
@dataclass(frozen=True, slots=True)
class HostRegistered:
    """A host opened its Dispatch stream, named `link_id`.

    `held_attempts_max` bounds what it may hold, running or ended; 0 says nothing. `boot_id` names
    the run of its pool manager, empty where that is not known.
    """

    host_id: str
    link_id: int
    snapshots: tuple[PoolSnapshot, ...]
    held: tuple[HeldAttempt, ...] = ()
    held_attempts_max: int = 0
    boot_id: str = ""


@plain_init
@dataclass(frozen=True, slots=True)
class HostLost:
    """The Dispatch stream `link_id` of a host ended."""

    host_id: str
    link_id: int


@plain_init
@dataclass(frozen=True, slots=True)
class SnapshotsReported:
    """Snapshots of one host, true at `as_of_ms` of the core's clock or later."""

    host_id: str
    snapshots: tuple[PoolSnapshot, ...]
    as_of_ms: int


@plain_init
@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The engine took an attempt up."""

    job_id: str
    attempt: int
    kv_warmth: bool = False


@plain_init
@dataclass(frozen=True, slots=True)
class OutputProgressed:
    """Output of an attempt was relayed: the first time at once, later coarsely."""

    job_id: str
    attempt: int
    pieces: int


@plain_init
@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """A pool confirmed the end of an attempt; its slot is idle. `finish` or `error` is set.

    `pieces` of output came before it, those of earlier attempts that it went on from among them.
    `job_cancelled`: it was stopped as its job was cancelled.
    """

    job_id: str
    attempt: int
    frame_seq: int
    finish: Finish | None = None
    error: AttemptError | None = None
    usage: Usage = NO_USAGE
    text_bytes: int = 0
    text_digest: int = 0
    pieces: int = 0
    job_cancelled: bool = False


@plain_init
@dataclass(frozen=True, slots=True)
class AttemptRefused:
    """A pool did not start an attempt."""

    job_id: str
    attempt: int
    reason: str
    message: str = ""


@plain_init
@dataclass(frozen=True, slots=True)
class AcceptsFailed:
    """The journal refused a batch: these accepts never happened."""

    job_ids: tuple[str, ...]


@plain_init
@dataclass(frozen=True, slots=True)
class EndConfirmed:
    """The end of a job is durable. Answers `ConfirmEnd`."""

    job_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The orchestrator shuts down: no more jobs are accepted or placed."""


@plain_init
@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """An operator changed settings while jobs wait and run; `config` is all of them."""

    config: CoreConfig


@plain_init
@dataclass(frozen=True, slots=True)
class PoolDrainRequested:
    """An operator drains a pool, for `timeout_ms` at most, or lets it take work again."""

    pool_id: str
    draining: bool
    timeout_ms: int
    reply_to: int


@plain_init
@dataclass(frozen=True, slots=True)
class ModelPut:
    """An operator registers a model (`revision` 0) or changes one that has that revision."""

    card: ModelCard
    revision: int
    reply_to: int


@plain_init
@dataclass(frozen=True, slots=True)
class ModelStateSet:
    """An operator retires a model, or makes it active again; `revision` 0 means whatever it is.

    After `grace_ms` pools serve nothing of it any more.
    """

    model_id: str
    state: ModelState
    revision: int
    grace_ms: int
    replaced_by: str
    reply_to: int


@plain_init
@dataclass(frozen=True, slots=True)
class ModelDeleted:
    """An operator forgets a model, with `force` although jobs of it are live."""

    model_id: str
    revision: int
    force: bool
    reply_to: int


@plain_init
@dataclass(frozen=True, slots=True)
class Recovered:
    """The journal's content at start, in the order of writing."""

    accepts: tuple[AcceptRecord, ...] = ()
    dispatches: tuple[DispatchRecord, ...] = ()
    terminals: tuple[TerminalRecord, ...] = ()
    sessions: tuple[SessionRecord, ...] = ()
    drains: tuple[PoolDrainRecord, ...] = ()
    models: tuple[CatalogRecord, ...] = ()


@plain_init
@dataclass(frozen=True, slots=True)
class SessionDeleted:
    """A client gives a session of its own up. `reply_to` names the caller in the reply."""

    identity: str
    session_id: str
    reply_to: int


@plain_init
@dataclass(frozen=True, slots=True)
class Stalled:
    """The event loop stood still for so long and goes on now: nobody was heard meanwhile."""

    pause_ms: int


@plain_init
@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline of `next_deadline_ms` has come."""


Event = (
    EnqueueRequested
    | CancelRequested
    | SubscribersChanged
    | OutputAcknowledged
    | HostRegistered
    | HostLost
    | SnapshotsReported
    | AttemptStarted
    | OutputProgressed
    | AttemptEnded
    | AttemptRefused
    | AcceptsFailed
    | EndConfirmed
    | DrainRequested
    | ConfigChanged
    | PoolDrainRequested
    | ModelPut
    | ModelStateSet
    | ModelDeleted
    | Recovered
    | SessionDeleted
    | Stalled
    | Tick
)
