"""Outputs of the core.

*Records* go to the journal (`core.records`). *Gated* effects leave only after every record of the
same or an earlier step is durable (output commit). *Immediate* effects leave at once.
"""

import enum
from dataclasses import dataclass

from orchestrator_core.core.catalog_model import DigestVerdict, FromCatalog
from orchestrator_core.core.outcome import Outcome, Refusal, Usage
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.records import Record
from orchestrator_core.core.spec import Budgets, JobSpec, StartMode
from orchestrator_core.core.states import JobState

# --- gated effects


@plain_init
@dataclass(frozen=True, slots=True)
class Receipt:
    """What the client is told at admission. Times in milliseconds from accept.

    `remaining` is what further jobs of the session may spend; None where it has no budgets.
    `from_catalog` is what the catalog added to the job.
    """

    job_id: str
    position: int
    predicted_start_ms: int | None
    predicted_end_ms: int | None
    on_time_probability: float | None
    backoff_ms: int
    duplicate: bool = False
    seed: int = 0
    remaining: Budgets | None = None
    from_catalog: FromCatalog | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class Remembered:
    """The first answer to a request id. ORCH-3024."""

    job_id: str
    digest: str
    receipt: Receipt
    expires_ms: int


@plain_init
@dataclass(frozen=True, slots=True)
class ReplyAccepted:
    """Answers an enqueue."""

    reply_to: int
    receipt: Receipt


@plain_init
@dataclass(frozen=True, slots=True)
class ReplyRefused:
    """Answers an enqueue or cancel with an error. Nothing was journaled for it."""

    reply_to: int
    refusal: Refusal
    engine: str = ""


@plain_init
@dataclass(frozen=True, slots=True)
class ReplyState:
    """Answers a cancel: the job's state is final and durable, look it up."""

    reply_to: int
    job_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class ReplySession:
    """Answers a request about a session, once what was done to it is durable."""

    reply_to: int
    session_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class SendStart:
    """Starts an attempt at its pool. `remaining_ms` is left until the job's deadline.

    `same_tokens` says that token ids of earlier attempts mean the same to this replica.
    """

    host_id: str
    pool_id: str
    replica_id: str
    attempt: int
    spec: JobSpec
    mode: StartMode
    remaining_ms: int | None
    same_tokens: bool = True


@plain_init
@dataclass(frozen=True, slots=True)
class SendCancel:
    """Stops an attempt at its pool. `job_cancelled`: as its job was, rather than it alone."""

    host_id: str
    job_id: str
    attempt: int
    job_cancelled: bool = False


@plain_init
@dataclass(frozen=True, slots=True)
class JobEnded:
    """The outcome, for subscribers, metrics and traces."""

    job_id: str
    state: JobState
    outcome: Outcome
    usage: Usage
    why: str = ""


@plain_init
@dataclass(frozen=True, slots=True)
class SendRelease:
    """Lets a host forget an attempt. Until then the host is the proof that it was, so it waits."""

    host_id: str
    job_id: str
    attempt: int


@plain_init
@dataclass(frozen=True, slots=True)
class ConfirmEnd:
    """Asks for `EndConfirmed` once the end of a job is durable: it may be taken back till then."""

    job_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class ReplyPool:
    """Tells a caller that what it asked of a pool is durable."""

    reply_to: int
    pool_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class ReplyModel:
    """Tells a caller that what it asked of a model is durable."""

    reply_to: int
    model_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class SendDrain:
    """Lets a host drain a pool, for `left_ms` at most; None: it takes work again."""

    host_id: str
    pool_id: str
    left_ms: int | None


# --- immediate effects


@plain_init
@dataclass(frozen=True, slots=True)
class JobStarted:
    """An attempt runs: `started` (or `resumed`, by mode) for subscribers."""

    job_id: str
    attempt: int
    mode: StartMode
    kv_warmth: bool


@plain_init
@dataclass(frozen=True, slots=True)
class OfferDeclined:
    """A job let its first slot pass: it would end in `here_ms` there, in `elsewhere_ms` else."""

    job_id: str
    pool_id: str
    here_ms: int
    elsewhere_ms: int


class Verdict(enum.Enum):
    """What becomes of an attempt that a host still holds."""

    ADOPT = "adopt"
    ABORT = "abort"
    RELEASE = "release"


@plain_init
@dataclass(frozen=True, slots=True)
class SendVerdicts:
    """Answers a host's registration: one verdict per held attempt, in its order.

    `refused` are pools that were not registered, each with the reason, for people.
    """

    host_id: str
    link_id: int
    verdicts: tuple[tuple[str, int, Verdict], ...]
    refused: tuple[tuple[str, str], ...] = ()


@plain_init
@dataclass(frozen=True, slots=True)
class AttemptClosed:
    """An attempt no longer counts: its frames are dropped from now on."""

    job_id: str
    attempt: int
    why: str
    retried: bool


@plain_init
@dataclass(frozen=True, slots=True)
class CancelUnconfirmed:
    """A host does not confirm a cancel: its pool gets no more jobs until that is resolved."""

    job_id: str
    attempt: int
    pool_id: str


@plain_init
@dataclass(frozen=True, slots=True)
class ModelRefused:
    """Answers a change of the catalog with an error. Nothing was changed."""

    reply_to: int
    refusal: Refusal


@plain_init
@dataclass(frozen=True, slots=True)
class PoolVerified:
    """How the digest of a pool compares with the catalog's, from now on. ORCH-3037."""

    pool_id: str
    model_id: str
    engine: str
    verdict: DigestVerdict


@plain_init
@dataclass(frozen=True, slots=True)
class ModelClosed:
    """The grace of a retired model is over: these pools take no more work, so many jobs fail."""

    model_id: str
    pool_ids: tuple[str, ...]
    jobs_failed: int


@plain_init
@dataclass(frozen=True, slots=True)
class JobForgotten:
    """Nothing is kept of the job any more: it is long over, or its accept was taken back."""

    job_id: str


Gated = (
    ReplyAccepted
    | ReplyState
    | ReplySession
    | SendStart
    | SendCancel
    | SendRelease
    | JobEnded
    | ConfirmEnd
    | ReplyPool
    | ReplyModel
    | SendDrain
)
Immediate = (
    ReplyRefused
    | JobStarted
    | OfferDeclined
    | SendVerdicts
    | AttemptClosed
    | CancelUnconfirmed
    | ModelRefused
    | PoolVerified
    | ModelClosed
    | JobForgotten
)
Effect = Record | Gated | Immediate
