"""The output log against a plain list of what was sent."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.log import Frame, OutputLog, Reader
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.wire.frames import encode_event

ROOMY = 1 << 20
END = encode_event(events_pb2.JobEvent(end=events_pb2.End(text_bytes=1)))
STARTED = encode_event(events_pb2.JobEvent(started=events_pb2.Started(attempt=1)))

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


@given(pieces_lists)
def test_reader_from_the_beginning_gets_exactly_what_was_sent(batches: list[list[str]]) -> None:
    """Every piece arrives once, in order, with true offsets and digests."""
    log = log_with(batches)
    log.finish(END, log.next_offset)

    events = read_all(log.open(None))

    got = b""
    for event in events[:-1]:
        assert (event.tokens.text_offset, event.tokens.prefix_digest) == (len(got), digest(got))
        got += "".join(event.tokens.pieces).encode()
    assert got.decode() == "".join(piece for pieces in batches for piece in pieces)
    assert events[-1].WhichOneof("event") == "end"


@given(pieces_lists.filter(bool), st.data())
def test_resume_at_any_character_gives_exactly_the_rest(
    batches: list[list[str]], data: st.DataObject
) -> None:
    """A reader that has any prefix of whole characters gets the rest, proved by the digest."""
    text = "".join(piece for pieces in batches for piece in pieces)
    cut = data.draw(st.integers(0, len(text)))
    head = text[:cut].encode()
    log = log_with(batches)
    bystander = log.open(None)
    bystander.take()

    resume = events_pb2.ResumePoint(attempt=1, text_offset=len(head), prefix_digest=digest(head))
    events = read_all(log.open(resume))

    assert text_of(events) == text[cut:]
    if events:
        assert events[0].tokens.prefix_digest == digest(head)
    log.finish(END, log.next_offset)
    assert [event.WhichOneof("event") for event in read_all(bystander)] == ["end"]


@given(pieces_lists.filter(bool), st.integers(0, 1 << 64 - 1))
def test_resume_with_another_digest_is_refused(batches: list[list[str]], wrong: int) -> None:
    """A client whose text differs from ours is told so instead of being given the rest."""
    log = log_with(batches)
    offset = log.next_offset
    right = digest("".join(piece for pieces in batches for piece in pieces).encode())
    point = events_pb2.ResumePoint(
        attempt=1, text_offset=offset, prefix_digest=wrong if wrong != right else wrong ^ 1
    )

    with pytest.raises(RefusalError) as caught:
        log.open(point)

    assert caught.value.refusal.reason is Reason.RESUME_WINDOW


def test_text_beyond_the_cap_is_evicted_and_its_readers_are_told_the_oldest_offset() -> None:
    """Memory stays bounded; a reader that fell behind gets RESUME_WINDOW with what is held."""
    log = OutputLog(2_000)
    log.begin_attempt(1)
    slow = log.open(None)

    for frame in frames([["word "]] * 500):
        log.append_text(frame)

    assert log.bytes_held <= 2_000
    with pytest.raises(RefusalError) as caught:
        slow.take()
    oldest = int(caught.value.refusal.metadata["oldest_offset"])
    assert 0 < oldest < log.next_offset
    resume = events_pb2.ResumePoint(attempt=1, text_offset=oldest, prefix_digest=0)
    assert text_of(read_all(log.open(resume))).encode() == b"word " * ((2_500 - oldest) // 5)


def test_frames_of_another_attempt_are_dropped() -> None:
    """Attempts never mix: only the bound attempt's text is taken."""
    log = log_with([["a"]])

    taken = log.append_text(frames([["a"], ["b"]], attempt=2)[1])

    assert taken is False
    assert text_of(read_all(log.open(None))) == "a"


def test_repeated_frames_change_nothing_and_a_gap_is_reported() -> None:
    """A frame that is known is dropped; one that lies ahead is a gap."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    first, second, third = frames([["a"], ["b"], ["c"]])

    answers = [log.append_text(frame) for frame in (first, first, third, second, third)]

    assert answers == [True, False, None, True, True]
    assert text_of(read_all(log.open(None))) == "abc"


def test_a_new_attempt_continues_where_the_text_overlaps() -> None:
    """A replay whose chunks are cut differently joins at the byte, with the right digest."""
    log = log_with([["one "], ["two "]])
    log.begin_attempt(2)

    taken = log.append_text(frames([["one two th", "ree"]], attempt=2)[0])

    events = read_all(log.open(None))
    assert taken is True
    assert text_of(events) == "one two three"
    assert events[-1].tokens.prefix_digest == digest(b"one two ")


def test_outcome_waits_for_the_text_that_belongs_before_it() -> None:
    """After a restart the outcome is known before the text is back: it is not sent early."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.finish(END, 3)
    reader = log.open(None)
    early = read_all(reader)

    for frame in frames([["abc"]]):
        log.append_text(frame)

    assert early == []
    assert [event.WhichOneof("event") for event in read_all(reader)] == ["tokens", "end"]


def test_nothing_is_taken_after_the_outcome() -> None:
    """No token follows a terminal event, whatever a pool sends."""
    log = log_with([["a"]])
    log.finish(END, None)

    taken = log.append_text(frames([["a"], ["b"]])[1])

    assert taken is False
    assert [e.WhichOneof("event") for e in read_all(log.open(None))] == ["tokens", "end"]


def test_resumed_reader_is_not_told_again_what_it_knows() -> None:
    """`started` of the attempt that the reader names is not repeated."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.append_event(STARTED)
    for frame in frames([["a"], ["b"]]):
        log.append_text(frame)

    point = events_pb2.ResumePoint(attempt=1, text_offset=0, prefix_digest=digest(b""))
    events = read_all(log.open(point))

    assert [event.WhichOneof("event") for event in events] == ["tokens", "tokens"]


def test_relay_drops_output_of_ended_jobs_first() -> None:
    """Beyond the total, jobs that have ended lose their output before those that run."""
    relay = Relay(RelayLimits(job_bytes=ROOMY, total_bytes=3_000))
    for job_id in ("ended", "live"):
        relay.log(job_id).begin_attempt(1)
    for frame in frames([["x" * 1_000]]):
        relay.append_text("ended", frame)
        relay.append_text("live", frame)
    relay.finish("ended", END, None)

    relay.append_text("live", frames([["x" * 1_000], ["y" * 1_000]])[1])

    assert relay.log("ended").bytes_held == 0
    assert relay.log("live").bytes_held > 2_000
