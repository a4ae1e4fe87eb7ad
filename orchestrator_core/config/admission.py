"""Settings of what is accepted, and in which order it waits."""

from typing import Literal

from pydantic import Field

from orchestrator_core.config.table import LIMIT_MAX, Live, Milliseconds, Table

Policy = Literal["reject", "reject-new", "drop-lru", "shed-low-priority", "fail-fast"]


class QueueTable(Table):
    """Admission and queue. ORCH-3004, ORCH-3005, LO-103."""

    capacity: Live[int] = Field(
        default=100, ge=1, le=1_000_000, description="Jobs that may wait, both classes."
    )
    policy: Live[Policy] = Field(
        default="reject",
        description="What happens when it is full; reject-new is an alias of reject.",
    )
    batch_every: Live[int] = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Interactive placements before a waiting batch job's turn.",
    )
    interactive_weight: Live[int] = Field(
        default=0,
        ge=0,
        le=10_000,
        description="With batch_weight: placements of each class in turn while both wait; 0: "
        "interactive first, but for batch_every.",
    )
    batch_weight: Live[int] = Field(
        default=0, ge=0, le=10_000, description="See interactive_weight."
    )
    token_fairness: Live[bool] = Field(
        default=False,
        description="The identity that was served the fewest tokens goes first; order of arrival "
        "then holds per identity.",
    )
    timeout_ms: Live[Milliseconds] = Field(
        default=3_600_000, description="Longest wait, if the job sets none."
    )
    lanes_max: Live[int] = Field(
        default=256, ge=1, le=65_536, description="Kinds of jobs that wait at a time."
    )
    retry_after_min_ms: Live[Milliseconds] = Field(
        default=100, description="Least advised wait of a rejection."
    )
    retry_after_max_ms: Live[Milliseconds] = Field(
        default=60_000, description="Longest advised wait that is an estimate."
    )


class PriceTable(Table):
    """What tokens of one model cost. ORCH-3099."""

    input_micros_per_1k_tokens: int = Field(
        ge=0, le=LIMIT_MAX, description="Price of prompts, in millionths of your currency."
    )
    output_micros_per_1k_tokens: int = Field(
        ge=0, le=LIMIT_MAX, description="Price of output, in millionths of your currency."
    )


class AdmissionTable(Table):
    """What is refused before it is queued. ORCH-3014, LO-105."""

    deadline_aware: Live[bool] = Field(
        default=False, description="Refuse jobs that will hardly meet their deadline."
    )
    min_on_time_probability: Live[float] = Field(
        default=0.1, ge=0.001, le=1.0, description="Least chance to be on time, if so."
    )
    token_bytes_max: Live[int] = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Most bytes of a prompt that one token stands for; see admission.md.",
    )
    price_micros_per_1k_tokens: Live[int] = Field(
        default=0,
        ge=0,
        le=10**12,
        description="Price of models without their own, in millionths of your currency; 0: their "
        "jobs with a cost budget are refused.",
    )
    prices: Live[dict[str, PriceTable]] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Prices of single models, one table each.",
    )


class IdentityTable(Table):
    """Limits of one client identity; what is left out is as for everybody. ORCH-3006."""

    requests_per_min: int | None = Field(
        default=None,
        ge=0,
        le=LIMIT_MAX,
        description="Jobs accepted per minute; 0: no limit; unset: as everybody.",
    )
    tokens_per_min: int | None = Field(
        default=None,
        ge=0,
        le=LIMIT_MAX,
        description="Tokens per minute; 0: no limit; unset: as everybody.",
    )
    queued_jobs: int | None = Field(
        default=None,
        ge=0,
        le=LIMIT_MAX,
        description="Jobs that may wait; 0: no limit; unset: as everybody.",
    )


class ThrottleTable(Table):
    """Limits of every client identity that has none of its own. ORCH-3006."""

    requests_per_min: Live[int] = Field(
        default=0, ge=0, le=LIMIT_MAX, description="Jobs accepted per minute; 0: no limit."
    )
    tokens_per_min: Live[int] = Field(
        default=0,
        ge=0,
        le=LIMIT_MAX,
        description="Tokens per minute, prompt and output; 0: no limit.",
    )
    queued_jobs: Live[int] = Field(
        default=0, ge=0, le=LIMIT_MAX, description="Jobs that may wait; 0: no limit."
    )
    identities_max: Live[int] = Field(
        default=10_000, ge=1, le=1_000_000, description="Identities whose use is remembered."
    )
    identities: Live[dict[str, IdentityTable]] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Limits of single identities, one table each.",
    )
