"""Commands to GPU hosts, and what comes back from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.core.effects import SendStart, SendVerdicts, Verdict
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    HeldAttempt,
)
from orchestrator_core.core.outcome import Usage
from orchestrator_core.core.spec import StartMode
from orchestrator_core.errors import MalformedOutputError
from orchestrator_core.wire.enums import (
    VERDICT_TO_WIRE,
    error_kind_from_wire,
    finish_from_wire,
    refusal_reason_from_wire,
)
from orchestrator_core.wire.plausible import COUNT_MAX, TIME_MS_MAX, too_large

AttemptKey = tuple[str, int]
"""(job_id, attempt number)."""

# Engines' messages are for people; what is longer than this helps nobody.
MESSAGE_CHARS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Adoption:
    """An adopted attempt's handle on the stream, and the first piece wanted."""

    handle: int
    first_index: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """All output of a job so far, of which `attempt` was the last to add.

    `tokens` counts ids where the engine reported them, else pieces. `token_ids` is empty unless
    they are known for all of the text. Without `text` the host goes by what it holds itself.
    """

    attempt: int
    text: str
    text_bytes: int
    digest: int
    tokens: int
    token_ids: tuple[int, ...]


def start_to_proto(
    start: SendStart,
    handle: int,
    resume: events_pb2.ResumePoint | None = None,
    traceparent: str = "",
    follows: Delivered | None = None,
) -> dispatch_pb2.StartAttempt:
    """The command that starts an attempt. `resume` is what followers of a replayed job hold.

    `follows` is the output that the attempt continues. `traceparent` names the span of the
    dispatch; without it the job's own is passed on.

    Raises:
        google.protobuf.message.DecodeError: when the job's payload is not a JobSpec.
    """
    spec = job_pb2.JobSpec.FromString(start.spec.payload)
    message = dispatch_pb2.StartAttempt(
        handle=handle,
        job_id=start.spec.job_id,
        attempt=start.attempt,
        pool_id=start.pool_id,
        replica_id=start.replica_id,
        model_id=start.spec.needs.model_id,
        input=spec.input,
        sampling=spec.sampling,
        session_id=start.spec.session_id,
        remaining_ms=None if start.remaining_ms is None else max(0, start.remaining_ms),
        traceparent=traceparent or start.spec.traceparent,
        correlation_id=start.spec.correlation_id,
    )
    if start.spec.max_tokens is not None:
        # The core may have lowered it to what a budget leaves.
        message.sampling.max_tokens = start.spec.max_tokens
    if start.mode is StartMode.VERIFIED_REPLAY and resume is not None:
        message.verify_until.CopyFrom(resume)
    if follows is not None:
        _follow(message, follows)
    return message


def _follow(message: dispatch_pb2.StartAttempt, follows: Delivered) -> None:
    """Makes a continuation of an attempt: what is generated counts as one output. LO-304."""
    message.continue_from.attempt = follows.attempt
    message.continue_from.text_offset = follows.text_bytes
    message.continue_from.prefix_digest = follows.digest
    message.continue_text = follows.text
    # Held as a piece for each token, so that they are counted alike when they come back.
    message.continue_index = follows.tokens
    message.continue_tokens = follows.tokens
    message.continue_token_ids.extend(follows.token_ids)
    if message.sampling.HasField("max_tokens"):
        message.sampling.max_tokens -= follows.tokens


def attempt_started(message: dispatch_pb2.AttemptStarted, key: AttemptKey) -> AttemptStarted:
    """The engine took an attempt up. `key` is what the handle is bound to."""
    return AttemptStarted(*key, kv_warmth=message.kv_warmth)


def attempt_refused(message: dispatch_pb2.AttemptRefused, key: AttemptKey) -> AttemptRefused:
    """The host did not start an attempt. `key` is what the handle is bound to."""
    reason = refusal_reason_from_wire(message.reason)
    return AttemptRefused(*key, reason=reason, message=message.message[:MESSAGE_CHARS_MAX])


def attempt_ended(
    message: dispatch_pb2.AttemptEnded, key: AttemptKey, frame_seq: int
) -> AttemptEnded:
    """An attempt is over, as told in frame `frame_seq`. `key` is what the handle is bound to.

    An end without an outcome counts as an engine error: output may be missing.

    Raises:
        MalformedOutputError: when its numbers cannot be true; names the first such field.
    """
    for problem in _implausible(message):
        raise MalformedOutputError(problem)
    if message.WhichOneof("outcome") == "finish_reason":
        finish, error = finish_from_wire(message.finish_reason), None
    else:
        finish, error = None, _error(message)
    return AttemptEnded(
        *key,
        frame_seq=frame_seq,
        finish=finish,
        error=error,
        usage=_usage(message.usage),
        text_bytes=message.text_bytes,
        text_digest=message.text_digest,
        pieces=message.next_index,
        job_cancelled=message.job_cancelled,
    )


def _implausible(message: dispatch_pb2.AttemptEnded) -> Iterator[str]:
    yield from too_large(message, ("next_index", "text_bytes"), COUNT_MAX, "ended.")
    usage = message.usage
    yield from too_large(usage, ("tokens_in", "tokens_cached", "tokens_out"), COUNT_MAX, "usage.")
    yield from too_large(usage, ("prefill_time_ms", "decode_time_ms"), TIME_MS_MAX, "usage.")


def held_attempt(message: dispatch_pb2.HeldAttempt) -> HeldAttempt:
    """An attempt that a registering host still holds."""
    return HeldAttempt(
        job_id=message.job_id,
        attempt=message.attempt,
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        ended=message.HasField("ended"),
        text_bytes=min(message.text_bytes, COUNT_MAX),
    )


def verdicts_to_proto(
    verdicts: SendVerdicts, adoptions: Mapping[AttemptKey, Adoption]
) -> list[dispatch_pb2.AttemptVerdict]:
    """What becomes of every held attempt, in the host's order.

    Raises:
        KeyError: when `adoptions` lacks an attempt that is adopted.
    """
    return [
        _verdict((job_id, attempt), verdict, adoptions)
        for job_id, attempt, verdict in verdicts.verdicts
    ]


def _verdict(
    key: AttemptKey, verdict: Verdict, adoptions: Mapping[AttemptKey, Adoption]
) -> dispatch_pb2.AttemptVerdict:
    message = dispatch_pb2.AttemptVerdict(
        job_id=key[0], attempt=key[1], verdict=VERDICT_TO_WIRE[verdict]
    )
    if verdict is Verdict.ADOPT:
        message.handle = adoptions[key].handle
        message.first_index = adoptions[key].first_index
    return message


def _error(message: dispatch_pb2.AttemptEnded) -> AttemptError:
    if not message.HasField("error"):
        return AttemptError(AttemptErrorKind.ENGINE_ERROR, "the host told no outcome")
    return AttemptError(
        error_kind_from_wire(message.error.kind), message.error.message[:MESSAGE_CHARS_MAX]
    )


def _usage(usage: dispatch_pb2.AttemptUsage) -> Usage:
    return Usage(
        tokens_in=usage.tokens_in if usage.HasField("tokens_in") else None,
        tokens_out=usage.tokens_out if usage.HasField("tokens_out") else None,
        decode_time_ms=usage.decode_time_ms if usage.HasField("decode_time_ms") else None,
    )
