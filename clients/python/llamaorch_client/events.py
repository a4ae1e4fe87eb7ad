# SPDX-License-Identifier: Apache-2.0
"""The events of a job, in the order in which a stream yields them (ORCH-2002, ORCH-3029).

queued* -> started -> tokens with metrics between -> [resumed -> tokens]* -> end | failed
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from llamaorch_client.errors import ErrorDetail
from llamaorch_client.model import FinishReason, JobState, Receipt, ResumeMode, Usage
from llamaorch_client.request import Budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The job waits; times are milliseconds from now."""

    name: ClassVar[str] = "queued"
    queue_position: int
    predicted_start_ms: int | None
    predicted_end_ms: int | None
    on_time_probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The job runs; times are milliseconds from accept to start, predicted and real."""

    name: ClassVar[str] = "started"
    queue_position: int
    predicted_start_ms: int | None
    queue_time_ms: int
    pool_id: str
    replica_id: str
    attempt: int
    kv_warmth: bool
    seed: int
    engine: str
    engine_version: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was: its text, and the natural logarithm of its probability.

    `top` are the likeliest at its place. A token that ends inside a character ends with U+FFFD.
    """

    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """New output: verified, without gap and without repetition (LO-301).

    `first_index` counts pieces and `text_offset` counts UTF-8 bytes before this batch. `token_ids`
    is empty where the engine reports none, or where a part of the batch was already delivered.
    `logprobs` holds those of each piece, and is empty unless the job asked for them.
    """

    name: ClassVar[str] = "tokens"
    attempt: int
    first_index: int
    text_offset: int
    pieces: tuple[str, ...]
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How the job and its surroundings are doing (ORCH-3100)."""

    name: ClassVar[str] = "metrics"
    queue_depth: int
    on_time_probability: float | None
    kv_warmth: bool
    remaining: Budgets | None
    kv_migrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A later attempt goes on where an earlier one broke (LO-304)."""

    name: ClassVar[str] = "resumed"
    attempt: int
    mode: ResumeMode
    text_offset: int
    kv_warmth: bool
    pool_id: str
    replica_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Outcome: FINISHED or CANCELLED. Nothing follows."""

    name: ClassVar[str] = "end"
    state: JobState
    finish_reason: FinishReason
    usage: Usage
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Outcome: dropped, expired or failed. Nothing follows. Yielded only when asked for."""

    name: ClassVar[str] = "failed"
    error: ErrorDetail


Event = Queued | Started | Tokens | Metrics | Resumed | End | Failed


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What a reader already has: the attempt of the last batch, and all text so far.

    The text itself is needed, not only its digest: the chain of digests goes on from it.
    """

    attempt: int
    text: str

    @property
    def text_offset(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text.encode())

    @property
    def prefix_digest(self) -> int:
        """First eight bytes, big-endian, of the SHA-256 of the text's UTF-8 bytes."""
        return int.from_bytes(hashlib.sha256(self.text.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Result:
    """A whole job: its output and its end. `receipt` is None for a job that was only followed."""

    text: str
    end: End
    receipt: Receipt | None
