# SPDX-License-Identifier: Apache-2.0
"""What a client says about a job. Field meanings and limits are those of JobSpec in job.proto."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypedDict


class Priority(StrEnum):
    """Class in which a job queues."""

    INTERACTIVE = "INTERACTIVE"
    BATCH = "BATCH"


class Determinism(StrEnum):
    """Whether equal seeds must give equal bytes."""

    BEST_EFFORT = "BEST_EFFORT"
    REQUIRED = "REQUIRED"


class KvHint(StrEnum):
    """Whether a session's cached keys and values are worth going back to."""

    NONE = "NONE"
    REUSE = "REUSE"


class FailoverPolicy(StrEnum):
    """What happens when an engine dies after text was delivered (LO-304)."""

    VERIFIED_REPLAY = "VERIFIED_REPLAY"
    CONTINUE = "CONTINUE"
    FAIL = "FAIL"


class OnDisconnect(StrEnum):
    """What happens when nobody listens any more (LO-303)."""

    CONTINUE = "CONTINUE"
    CANCEL = "CANCEL"


def refuse_text(owner: object, *names: str) -> None:
    """Refuses a text that stands for a sequence of texts: it would be sent letter by letter.

    Raises:
        ValueError: naming the attribute.
    """
    for name in names:
        if isinstance(getattr(owner, name), str):
            told = f"{name} must be a sequence, such as a tuple, not one text"
            raise ValueError(told)  # noqa: TRY004 - as all that callers give wrongly


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Parameters of generation; None leaves the engine's default.

    With `logprobs` each token comes with its log probability, beside those of so many of the
    likeliest, 0 to 20; engines that report none refuse the job.

    Raises:
        ValueError: both a schema and a grammar are given, or `stop` is one text.
    """

    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    json_schema: str | None = None
    grammar: str | None = None
    engine_options: Mapping[str, object] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.json_schema is not None and self.grammar is not None:
            raise ValueError("give at most one of json_schema and grammar")
        refuse_text(self, "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a pool must offer; what is unset does not restrict (LO-201)."""

    min_vram_bytes: int | None = None
    quantization: str = ""
    min_compute_cap: str = ""
    required_extensions: tuple[str, ...] = ()
    device_mask: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_text(self, "required_extensions", "device_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What one job or its session may spend, or has left; None is unbounded (ORCH-3099)."""

    tokens: int | None = None
    time_ms: int | None = None
    cost_micros: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job. Exactly one of `prompt`, `messages` and `artifact_id` is the input.

    `deadline` must know its time zone. An empty `request_id` is replaced by a fresh one, so that a
    retry can never run the job twice (ORCH-3024). `session_budgets` are those of the session that
    `session_id` opens; later jobs of it leave them out or repeat them (ORCH-3099).

    Raises:
        ValueError: there is not exactly one input, or the deadline has no time zone.
    """

    model_id: str
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    artifact_id: str = ""
    job_id: str = ""
    request_id: str = ""
    session_id: str = ""
    priority: Priority = Priority.INTERACTIVE
    engine: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    expected_tokens: int | None = None
    required_ctx: int | None = None
    est_kv_bytes: int | None = None
    requirements: Requirements | None = None
    engine_version: str = ""
    model_digest: str = ""
    sampler_profile_version: str = ""
    determinism: Determinism = Determinism.BEST_EFFORT
    deadline: datetime | None = None
    queue_timeout_ms: int | None = None
    budgets: Budgets | None = None
    kv_hint: KvHint = KvHint.NONE
    failover: FailoverPolicy | None = None
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    labels: Mapping[str, str] = field(default_factory=dict)
    session_budgets: Budgets | None = None

    def __post_init__(self) -> None:
        if (self.prompt is not None) + bool(self.messages) + bool(self.artifact_id) != 1:
            raise ValueError("give exactly one of prompt, messages and artifact_id")
        if self.deadline is not None and self.deadline.tzinfo is None:
            raise ValueError("deadline must know its time zone, e.g. datetime.now(UTC) + ...")


class JobFields(TypedDict, total=False):
    """The fields of `JobRequest` as keyword arguments."""

    model_id: str
    prompt: str | None
    messages: tuple[ChatMessage, ...]
    artifact_id: str
    job_id: str
    request_id: str
    session_id: str
    priority: Priority
    engine: str
    sampling: Sampling
    expected_tokens: int | None
    required_ctx: int | None
    est_kv_bytes: int | None
    requirements: Requirements | None
    engine_version: str
    model_digest: str
    sampler_profile_version: str
    determinism: Determinism
    deadline: datetime | None
    queue_timeout_ms: int | None
    budgets: Budgets | None
    kv_hint: KvHint
    failover: FailoverPolicy | None
    on_disconnect: OnDisconnect
    labels: Mapping[str, str]
    session_budgets: Budgets | None


def job_request(request: JobRequest | None, fields: JobFields) -> JobRequest:
    """Returns the job that was given in one of two ways.

    Raises:
        ValueError: it was given in both, or is not complete.
    """
    if request is None:
        try:
            return JobRequest(**fields)
        except TypeError as error:
            raise ValueError(f"the job is not complete: {error}") from error
    if fields:
        raise ValueError("give either a JobRequest or its fields, not both")
    return request
