"""What the executor is told to do, and how it answers."""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from pool_managerd.core.attempts import (
    AttemptFailure,
    AttemptKey,
    Boundary,
    EndReason,
    ErrorKind,
    Prefix,
)
from pool_managerd.core.outbox import RefusalReason
from pool_managerd.engines.port import ChatMessage, GenerationRequest
from pool_managerd.errors import PoolManagerError

Prompt = str | tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class AttemptCommand:
    """A StartAttempt in the executor's terms.

    With `fetch_input` the prompt lies at the orchestrator and must be fetched first.
    `remaining_ms` is the backstop of the job's deadline. `continue_text` is what a continuation
    follows, `continue_index` the index of its first piece: the text is held as so many. Without it
    the text must be held already. `continue_tokens` were generated before.
    """

    key: AttemptKey
    pool_id: str
    replica_id: str
    model_id: str
    request: GenerationRequest
    session_id: str = ""
    remaining_ms: int | None = None
    verify_until: Boundary | None = None
    continue_from: tuple[int, Boundary] | None = None
    continue_text: str = ""
    continue_index: int = 0
    continue_tokens: int = 0
    traceparent: str = ""
    correlation_id: str = ""
    fetch_input: bool = False


class InputError(PoolManagerError):
    """An input cannot be had; the message says why. With `lasting` nobody else will get it."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an attempt was not started, with a sentence for people."""

    reason: RefusalReason
    message: str


def prefix_of(text: str, boundary: Boundary, pieces: int) -> Prefix | None:
    """The prefix that `text` is, or None when it is not the text up to `boundary`.

    It is cut into `pieces` of about the same size, at least one and no more than it has bytes:
    where it was cut before is not known, only how much it was.
    """
    data = text.encode()
    digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    if (len(data), digest) != (boundary.text_offset, boundary.digest):
        return None
    count = max(1, min(pieces, len(data)))
    edges = (len(text) * number // count for number in range(count + 1))
    return Prefix(tuple(text[begin:end] for begin, end in pairwise(edges)))


class Stop(enum.Enum):
    """Why the executor stops a generation."""

    CANCEL = "cancel"
    JOB_CANCELLED = "job_cancelled"
    DEADLINE = "deadline"
    MISMATCH = "mismatch"
    TOO_LARGE = "too_large"
    BROKEN = "broken"
    REPLICA_GONE = "replica_gone"
    DRAINED = "drained"


OUTCOME_OF_STOP: Mapping[Stop, EndReason | AttemptFailure] = {
    Stop.CANCEL: EndReason.CANCELLED,
    Stop.JOB_CANCELLED: EndReason.CANCELLED,
    Stop.DEADLINE: AttemptFailure(ErrorKind.TIMEOUT, "the job's deadline passed"),
    Stop.MISMATCH: AttemptFailure(
        ErrorKind.REPLAY_MISMATCH, "the replay produced other text than the first attempt"
    ),
    Stop.TOO_LARGE: AttemptFailure(
        ErrorKind.OUTPUT_TOO_LARGE, "the output exceeds what this host may hold"
    ),
    Stop.BROKEN: AttemptFailure(ErrorKind.ENGINE_ERROR, "the engine adapter failed"),
    Stop.REPLICA_GONE: AttemptFailure(ErrorKind.ENGINE_DIED, "the engine was stopped"),
    Stop.DRAINED: AttemptFailure(ErrorKind.ENGINE_DIED, "the pool was drained"),
}
"""What becomes of an attempt that is stopped."""
