"""Logs of output, what is put into them, and what their readers get."""

import hashlib

import pytest
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.reader import Reader
from orchestrator_core.wire.frames import encode_event

ROOMY = 1 << 20
END = encode_event(events_pb2.JobEvent(end=events_pb2.End(text_bytes=1)))
STARTED = encode_event(events_pb2.JobEvent(started=events_pb2.Started(attempt=1)))
RESUMED = encode_event(events_pb2.JobEvent(resumed=events_pb2.Resumed(attempt=2)))
pieces_lists = st.lists(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4))


def digest(text: bytes) -> int:
    """The digest that the protocol defines, written a second time."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def frames(batches: list[list[str]], attempt: int = 1) -> list[Frame]:
    """Frames of consecutive batches, as a pool would make them."""
    made, index, before = [], 0, b""
    for pieces in batches:
        batch = events_pb2.TokenBatch(
            attempt=attempt,
            first_index=index,
            text_offset=len(before),
            prefix_digest=digest(before),
            pieces=pieces,
        )
        text = "".join(pieces).encode()
        made.append(
            Frame(attempt, index, len(pieces), len(before), len(text), batch.SerializeToString())
        )
        index += len(pieces)
        before += text
    return made


def log_with(batches: list[list[str]], bytes_max: int = ROOMY) -> OutputLog:
    """A log that has taken all batches of attempt 1."""
    log = OutputLog(bytes_max)
    log.begin_attempt(1)
    for frame in frames(batches):
        assert log.append_text(frame) is True
    return log


def point(text: bytes, attempt: int = 1) -> events_pb2.ResumePoint:
    """Where a reader that has `text` goes on."""
    return events_pb2.ResumePoint(
        attempt=attempt, text_offset=len(text), prefix_digest=digest(text)
    )


def trimmed(events: list[events_pb2.JobEvent], have: bytes) -> bytes:
    """What a reader has in the end that checks offsets and digests and trims what overlaps."""
    for event in events:
        if event.HasField("resumed"):
            continue
        batch = event.tokens
        raw = "".join(batch.pieces).encode()
        known = len(have) - batch.text_offset
        assert 0 <= known < len(raw), "a gap, or a batch with nothing new"
        assert batch.prefix_digest == digest(have[: batch.text_offset])
        assert raw[:known] == have[batch.text_offset :]
        have += raw[known:]
    return have


def refused(log: OutputLog, resume: events_pb2.ResumePoint | None) -> int:
    """The oldest offset held, as told to who cannot read on."""
    with pytest.raises(RefusalError) as caught:
        log.open(resume)
    assert caught.value.refusal.reason is Reason.RESUME_WINDOW
    return int(caught.value.refusal.metadata["oldest_offset"])


def read_all(reader: Reader) -> list[events_pb2.JobEvent]:
    """Everything that a reader can get now."""
    events: list[events_pb2.JobEvent] = []
    while entries := reader.take():
        response = orchestrator_service_pb2.StreamTokensResponse.FromString(b"".join(entries))
        events.extend(response.events)
    return events


def text_of(events: list[events_pb2.JobEvent]) -> str:
    """Text of all token events."""
    return "".join(piece for event in events for piece in event.tokens.pieces)


def sent(pieces: list[str], start: int, stop: int, *, ids: bool) -> Frame:
    """A frame of pieces `start` to `stop`; with ids, piece n has the token n."""
    before = "".join(pieces[:start]).encode()
    text = "".join(pieces[start:stop]).encode()
    numbers = range(start, stop) if ids else ()
    batch = events_pb2.TokenBatch(
        attempt=1,
        first_index=start,
        text_offset=len(before),
        prefix_digest=digest(before),
        pieces=pieces[start:stop],
        token_ids=numbers,
        token_counts=[1 for _ in numbers],
    )
    chunk = batch.SerializeToString()
    return Frame(1, start, stop - start, len(before), len(text), chunk)
