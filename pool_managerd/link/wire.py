"""Between protobuf messages and the pool manager's own types.

The only module that knows both well.
"""

from collections.abc import Iterable, Mapping

from google.protobuf.json_format import Error as JsonError
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from pool_managerd.attempts.command import AttemptCommand, Prompt
from pool_managerd.core.attempts import (
    AttemptFailure,
    AttemptKey,
    AttemptLog,
    Boundary,
    Chunk,
    EndReason,
    ErrorKind,
    Terminal,
)
from pool_managerd.core.logprobs import TokenLogprob
from pool_managerd.core.outbox import Frame, RefusalReason
from pool_managerd.core.tellable import plain_text
from pool_managerd.engines.port import ChatMessage, GenerationRequest, SamplingParams
from pool_managerd.errors import PoolManagerError

PROTOCOL_VERSION = "1.0"
ERROR_TEXT_MAX = 1_000
"""Characters of an engine's message that are passed on."""
HELD_PER_MESSAGE = 1_000
HELD_BYTES_PER_MESSAGE = 1 << 20
"""Bounds of one page of Register.held, well below the transport's limit."""

_REFUSALS: Mapping[RefusalReason, dispatch_pb2.RefusalReason.ValueType] = {
    reason: dispatch_pb2.RefusalReason.Value(f"REFUSAL_REASON_{reason.name}")
    for reason in RefusalReason
}
_ERRORS: Mapping[ErrorKind, dispatch_pb2.AttemptErrorKind.ValueType] = {
    kind: dispatch_pb2.AttemptErrorKind.Value(f"ATTEMPT_ERROR_KIND_{kind.name}")
    for kind in ErrorKind
}
_FINISHES: Mapping[EndReason, job_pb2.FinishReason.ValueType] = {
    reason: job_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}") for reason in EndReason
}


class UnsupportedCommandError(PoolManagerError):
    """A command that this host does not understand; the message says what."""


def parse_start(message: dispatch_pb2.StartAttempt) -> AttemptCommand:
    """A StartAttempt in the executor's terms.

    Raises:
        UnsupportedCommandError: when it has no job, no attempt, or an input of an unknown form.
    """
    if not message.job_id or not message.attempt:
        raise UnsupportedCommandError("an attempt needs a job_id and a number from 1")
    fetch_input = message.input.WhichOneof("input") == "artifact_id"
    continue_from = None
    if message.HasField("continue_from"):
        point = message.continue_from
        continue_from = (point.attempt, _boundary(point))
    return AttemptCommand(
        key=AttemptKey(message.job_id, message.attempt),
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        model_id=message.model_id,
        request=GenerationRequest(
            request_id=f"{message.job_id}#{message.attempt}",
            prompt=prompt_of(message.input) if not fetch_input else "",
            sampling=_sampling(message.sampling),
            continue_token_ids=tuple(message.continue_token_ids),
        ),
        session_id=message.session_id,
        remaining_ms=message.remaining_ms if message.HasField("remaining_ms") else None,
        verify_until=_boundary(message.verify_until) if message.HasField("verify_until") else None,
        continue_from=continue_from,
        continue_text=message.continue_text,
        continue_index=message.continue_index,
        continue_tokens=message.continue_tokens,
        traceparent=message.traceparent,
        correlation_id=message.correlation_id,
        fetch_input=fetch_input,
    )


def _boundary(point: events_pb2.ResumePoint) -> Boundary:
    return Boundary(point.text_offset, point.prefix_digest)


def prompt_of(message: job_pb2.JobInput) -> Prompt:
    """Text or a conversation.

    Raises:
        UnsupportedCommandError: for any other form of input.
    """
    form = message.WhichOneof("input")
    if form == "text":
        return message.text
    if form == "chat":
        return tuple(ChatMessage(item.role, item.content) for item in message.chat.messages)
    raise UnsupportedCommandError(f"this host takes text and chat input, not {form or 'none'}")


def _sampling(message: job_pb2.Sampling) -> SamplingParams:
    constraint = message.WhichOneof("constraint")
    return SamplingParams(
        seed=message.seed,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        min_p=message.min_p if message.HasField("min_p") else None,
        stop=tuple(message.stop),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        json_schema=message.json_schema if constraint == "json_schema" else None,
        grammar=message.grammar if constraint == "grammar" else None,
        engine_options=_options(message.engine_options),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _options(message: Struct) -> dict[str, object]:
    try:
        return MessageToDict(message)
    except (JsonError, ValueError) as error:
        # Not a number, or infinite: JSON has no word for it, and engines speak JSON.
        raise UnsupportedCommandError(f"engine_options: {error}") from error


def frame_message(
    frame: Frame, frame_seq: int, applied_dispatch_seq: int
) -> registry_pb2.DispatchRequest:
    """One HostFrame. Columns run in parallel; each chunk is the bytes of a TokenBatch."""
    request = registry_pb2.DispatchRequest()
    # Filled in its place: a message that is put into another one is copied.
    message = request.frame
    message.frame_seq = frame_seq
    message.applied_dispatch_seq = applied_dispatch_seq
    for refused in frame.refused:
        message.refused.add(
            handle=refused.handle, reason=_REFUSALS[refused.reason], message=refused.message
        )
    for handle, kv_warmth in frame.started:
        message.started.add(handle=handle, kv_warmth=kv_warmth)
    if frame.chunks:
        chunks = [chunk for _, _, chunk in frame.chunks]
        columns = message.tokens
        columns.handles.extend([handle for handle, _, _ in frame.chunks])
        columns.first_indexes.extend([chunk.first_index for chunk in chunks])
        columns.piece_counts.extend([len(chunk.pieces) for chunk in chunks])
        columns.text_offsets.extend([chunk.text_offset for chunk in chunks])
        columns.text_bytes.extend([chunk.text_bytes for chunk in chunks])
        columns.chunks.extend([_token_batch(log, chunk) for _, log, chunk in frame.chunks])
    if frame.ended:
        message.ended.extend(ended(log, handle) for handle, log in frame.ended)
    return request


def _token_batch(log: AttemptLog, chunk: Chunk) -> bytes:
    batch = events_pb2.TokenBatch(
        attempt=log.key.attempt,
        first_index=chunk.first_index,
        text_offset=chunk.text_offset,
        prefix_digest=chunk.prefix_digest,
        pieces=chunk.pieces,
        token_ids=chunk.token_ids,
        token_counts=chunk.token_counts if chunk.token_ids else (),
        logprobs=map(_piece_logprobs, chunk.logprobs),
    )
    return batch.SerializeToString()


def _piece_logprobs(tokens: tuple[TokenLogprob, ...]) -> events_pb2.PieceLogprobs:
    message = events_pb2.PieceLogprobs()
    for token in tokens:
        entry = message.tokens.add(token=token.token, logprob=token.logprob)
        for text, logprob in token.top:
            entry.top.add(token=text, logprob=logprob)
    return message


def ended(log: AttemptLog, handle: int = 0) -> dispatch_pb2.AttemptEnded:
    """The end of an attempt that is over."""
    assert log.terminal is not None, "the caller has seen the terminal record"
    message = dispatch_pb2.AttemptEnded(
        handle=handle,
        usage=_usage(log.terminal),
        next_index=log.next_index,
        text_bytes=log.text_bytes,
        text_digest=log.digest,
        job_cancelled=log.terminal.job_cancelled,
    )
    match log.terminal.outcome:
        case EndReason() as reason:
            message.finish_reason = _FINISHES[reason]
        case AttemptFailure(kind=kind, message=text):
            message.error.kind = _ERRORS[kind]
            message.error.message = plain_text(text[:ERROR_TEXT_MAX])
    return message


def _usage(terminal: Terminal) -> dispatch_pb2.AttemptUsage:
    usage = terminal.usage
    return dispatch_pb2.AttemptUsage(
        tokens_in=usage.tokens_in,
        tokens_cached=usage.tokens_cached,
        tokens_out=usage.tokens_out,
        prefill_time_ms=usage.prefill_time_ms,
        decode_time_ms=usage.decode_time_ms,
    )


def held_attempt(log: AttemptLog) -> dispatch_pb2.HeldAttempt:
    """One entry of Register.held."""
    return dispatch_pb2.HeldAttempt(
        job_id=log.key.job_id,
        attempt=log.key.attempt,
        pool_id=log.pool_id,
        replica_id=log.replica_id,
        first_index=log.first_index,
        next_index=log.next_index,
        text_bytes=log.text_bytes,
        text_digest=log.digest,
        ended=ended(log) if log.terminal is not None else None,
    )


def register_pages(
    first: dispatch_pb2.Register, held: Iterable[AttemptLog]
) -> list[dispatch_pb2.Register]:
    """The registration as messages within the transport's limit; `first` lacks what is held."""
    pages = [first]
    size_bytes = 0
    for log in held:
        entry = held_attempt(log)
        size_bytes += entry.ByteSize()
        full = len(pages[-1].held) >= HELD_PER_MESSAGE or size_bytes > HELD_BYTES_PER_MESSAGE
        if full and pages[-1].held:
            pages[-1].more = True
            pages.append(dispatch_pb2.Register())
            size_bytes = entry.ByteSize()
        pages[-1].held.append(entry)
    return pages
