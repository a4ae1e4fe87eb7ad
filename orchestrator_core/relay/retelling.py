"""Events made anew for a reader that knows more of a job than the log does. LO-301, LO-304.

After a restart of the orchestrator a log begins again, and its readers come back with text.
"""

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.wire.frames import encode_event


def resumed_at(attempt: int, told: bytes, text_offset: int) -> bytes:
    """The `resumed` of an attempt for a reader that has `text_offset` bytes of an earlier one.

    `told` is the entry that announced the attempt to others, empty when there was none. What the
    reader has is compared by digests, so a fresh start is a verified replay to it.
    """
    known = _event(told)
    resumed = events_pb2.Resumed(mode=events_pb2.RESUME_MODE_VERIFIED_REPLAY)
    if known.HasField("resumed"):
        resumed.CopyFrom(known.resumed)
    elif known.HasField("started"):
        resumed.kv_warmth = known.started.kv_warmth
        resumed.pool_id = known.started.pool_id
        resumed.replica_id = known.started.replica_id
    resumed.attempt, resumed.text_offset = attempt, text_offset
    return encode_event(events_pb2.JobEvent(resumed=resumed))


def outcome_at(final: bytes, text_offset: int) -> bytes:
    """An outcome without text for a reader that has `text_offset` bytes of it.

    How much output a job had that did not finish is not in the journal: what the reader has counts.
    """
    event = _event(final)
    if event.HasField("end"):
        event.end.text_bytes = text_offset
        event.end.ClearField("text_digest")
    return encode_event(event)


def of_attempt(attempt: int, entry: bytes) -> bytes:
    """The entry of text, told as made by an attempt."""
    event = _event(entry)
    event.tokens.attempt = attempt
    return encode_event(event)


def starts(entry: bytes) -> bool:
    """True for the entry of a `started`."""
    return _event(entry).HasField("started")


def text_of(entry: bytes) -> bytes:
    """The text in an entry; empty where it is another event."""
    return "".join(_event(entry).tokens.pieces).encode()


def digest_before(entry: bytes) -> int:
    """The digest of all text before that in an entry, as its host says."""
    return _event(entry).tokens.prefix_digest


def _event(entry: bytes) -> events_pb2.JobEvent:
    events = orchestrator_service_pb2.StreamTokensResponse.FromString(entry).events
    return events[0] if events else events_pb2.JobEvent()
