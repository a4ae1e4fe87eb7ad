# SPDX-License-Identifier: Apache-2.0
"""What the server says about jobs, sessions and decisions. What is absent is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llamaorch_client.errors import ErrorDetail
from llamaorch_client.request import Budgets, Priority

RATE_TIME_MIN_MS = 20
"""Shortest time over which a rate of tokens says something: output comes in groups of 5 ms."""


class JobState(StrEnum):
    """Where a job is in its life; UNSPECIFIED is a state that this version does not know."""

    UNSPECIFIED = "UNSPECIFIED"
    QUEUED = "QUEUED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    DROPPED = "DROPPED"
    FAILED = "FAILED"

    @property
    def terminal(self) -> bool:
        """True when the job will not change any more."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        JobState.FINISHED,
        JobState.CANCELLED,
        JobState.EXPIRED,
        JobState.DROPPED,
        JobState.FAILED,
    }
)


class FinishReason(StrEnum):
    """Why generation stopped."""

    UNSPECIFIED = "UNSPECIFIED"
    EOS = "EOS"
    STOP = "STOP"
    LENGTH = "LENGTH"
    CANCELLED = "CANCELLED"
    TOOL_CALLS = "TOOL_CALLS"
    CONTENT_FILTER = "CONTENT_FILTER"


class ResumeMode(StrEnum):
    """How a later attempt takes up the text of an earlier one."""

    UNSPECIFIED = "UNSPECIFIED"
    VERIFIED_REPLAY = "VERIFIED_REPLAY"
    CONTINUE = "CONTINUE"


class ExclusionReason(StrEnum):
    """Why a pool could not take a job."""

    UNSPECIFIED = "UNSPECIFIED"
    MODEL = "MODEL"
    ENGINE = "ENGINE"
    DEVICE_MASK = "DEVICE_MASK"
    VRAM_TOTAL = "VRAM_TOTAL"
    QUANTIZATION = "QUANTIZATION"
    COMPUTE_CAP = "COMPUTE_CAP"
    EXTENSION = "EXTENSION"
    CONTEXT = "CONTEXT"
    DETERMINISM = "DETERMINISM"
    NOT_READY = "NOT_READY"
    STALE = "STALE"
    NO_SLOT = "NO_SLOT"
    KV_ROOM = "KV_ROOM"
    RESERVED = "RESERVED"
    TRIED = "TRIED"
    KV_TOTAL = "KV_TOTAL"
    DEVICE_SHARE = "DEVICE_SHARE"
    DECLINED = "DECLINED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The server's answer to an accepted job: from now on it is durable.

    Times are milliseconds from the answer. `request_id` is the idempotency key that was sent.
    """

    job_id: str
    request_id: str
    queue_position: int
    predicted_start_ms: int | None
    predicted_end_ms: int | None
    on_time_probability: float | None
    backoff_ms: int
    remaining: Budgets | None
    seed: int
    duplicate: bool
    correlation_id: str
    from_catalog: "FromCatalog | None" = None


@dataclass(frozen=True, slots=True)
class FromCatalog:
    """What the catalog added to a job: `filled` by the name of the field (ORCH-3031).

    `alias` is the name that the job asked for, empty where that is the model's id.
    """

    alias: str
    revision: int
    filled: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation: its turns, its budgets, and where its cache is (ORCH-3021, ORCH-3099).

    `budgets` are those in force and `remaining` what further jobs may spend, None without budgets;
    `spent` was used, `reserved` is set aside for `job_ids`, which have not ended. `expires_at` is
    when the session is forgotten if it stays silent, None while it has such jobs. `kv_tokens` are
    held by `warm_pool_id`, which is empty when no cache is expected to hold the session.
    """

    session_id: str
    opened_at: datetime | None
    used_at: datetime | None
    expires_at: datetime | None
    turns: int
    turns_max: int
    budgets: Budgets | None
    spent: Budgets
    reserved: Budgets
    remaining: Budgets | None
    job_ids: tuple[str, ...]
    warm_pool_id: str
    kv_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a job took; times in milliseconds by the orchestrator's clock.

    `decode_time_ms` is the engine's own figure where it gives one, else the time from the first
    output to the end.
    """

    tokens_in: int | None = None
    tokens_out: int | None = None
    queue_time_ms: int | None = None
    first_token_ms: int | None = None
    decode_time_ms: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Decode rate: tokens after the first over `decode_time_ms`.

        None where that is below `RATE_TIME_MIN_MS`: it is in whole milliseconds, and may leave out
        what came together with the first token.
        """
        if not self.tokens_out or (self.decode_time_ms or 0) < RATE_TIME_MIN_MS:
            return None
        assert self.decode_time_ms is not None, "it was compared"
        return (self.tokens_out - 1) * 1000 / self.decode_time_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The orchestrator's view of one job.

    `output_pieces` have arrived of the `expected_tokens`, while it runs; most pieces are one token.
    """

    job_id: str
    state: JobState
    priority: Priority
    engine: str
    model_id: str
    session_id: str
    accepted_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    queue_position: int | None
    predicted_start_ms: int | None
    predicted_end_ms: int | None
    attempt: int
    pool_id: str
    replica_id: str
    finish_reason: FinishReason
    error: ErrorDetail | None
    usage: Usage
    trace_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    on_time_probability: float | None = None
    output_pieces: int | None = None
    expected_tokens: int | None = None
    from_catalog: FromCatalog | None = None


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One thing that a pool lacks for a job."""

    reason: ExclusionReason
    required: str
    offered: str


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A pool that could not take the job, with every shortfall."""

    pool_id: str
    shortfalls: tuple[Shortfall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """What a pool had reported when a decision was made; None for what it did not report."""

    slots_total: int
    slots_free: int
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    kv_free_bytes: int | None
    perf_tokens_per_s: float | None
    first_token_ms: int | None
    prefill_tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pool that could take the job; the score is `predicted_end_ms`, less is better.

    `perf_scale` is below 1 where a device of the pool had lowered its clocks to protect itself.
    `prompt_ms` is the part of `first_token_ms` for reading the prompt, None from an older server.
    `snapshot` is None where the server's recording no longer holds the decision.
    """

    pool_id: str
    replica_id: str
    predicted_end_ms: int
    first_token_ms: int
    decode_ms: int
    kv_warm: bool
    slots_free: int
    vram_headroom_bytes: int | None
    snapshot_version: int
    snapshot_age_ms: int
    tokens_per_s: float = 0.0
    perf_scale: float = 1.0
    prompt_ms: int | None = None
    snapshot: SnapshotFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The record of one placement.

    `decided_by` names the score, or the first tie-break that differed; `declined_offers` counts
    the slots that the job had let pass for a faster pool. `complete` says that all candidates and
    exclusions are listed.
    """

    rules_version: int
    job_id: str
    attempt: int
    decided_at: datetime | None
    pool_id: str
    decided_by: str
    candidates: tuple[Candidate, ...]
    candidates_total: int
    exclusions: tuple[Exclusion, ...]
    exclusions_total: int
    waited_ms: int
    declined_offers: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class WaitCause:
    """One thing that keeps `pools_total` pools from a waiting job; `pool_ids` are the first.

    `sentence` says what, `remedy` what would help: empty where only waiting does.
    """

    reason: ExclusionReason
    sentence: str
    remedy: str
    pools_total: int
    pool_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job runs where it runs, or why it does not run (LO-207).

    Of a waiting job `wait_summary` is the short answer and `wait_causes` say what keeps all pools
    from it, what is the nearest to being over first; `waiting_for` has every single pool.
    """

    job: Job
    decisions: tuple[Decision, ...]
    waiting_for: tuple[Exclusion, ...]
    trace_id: str
    #: Pools that cannot take it now; `waiting_for` has the first that fit into a message.
    waiting_for_total: int = 0
    wait_summary: str = ""
    wait_remedy: str = ""
    wait_causes: tuple[WaitCause, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """One class of the queue: how many wait, and the first of them in order of offers."""

    priority: Priority
    waiting: int
    next: tuple[Job, ...]
    last_predicted_start_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What happens on a server at one instant; lists are cut at the asked number of rows.

    `decisions` and `ended` have the newest first; decisions come without their candidates.
    `observed_at` is by the clock of all other times in it.
    """

    queues: tuple[QueueView, ...]
    queue_capacity: int
    running: tuple[Job, ...]
    running_total: int
    decisions: tuple[Decision, ...]
    ended: tuple[Job, ...]
    ended_total: int
    draining: bool
    store_unavailable: bool
    observed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundDecision:
    """Whether a tool may connect to an address; it holds for no other (ORCH-3080).

    `decision_id` is how the server logs it, `rule` what decided, `reason` a sentence for people,
    empty when allowed. `scheme` and `host` are what was judged: connect to these.
    """

    allowed: bool
    decision_id: str
    rule: str
    reason: str
    scheme: str
    host: str
