"""The output log of a job that is tried again, cancelled or restored."""

from dataclasses import replace

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.frames import encode_event
from tests.unit.orchestrator_core.relay.logs import (
    END,
    RESUMED,
    ROOMY,
    STARTED,
    digest,
    frames,
    log_with,
    pieces_lists,
    point,
    read_all,
    refused,
    text_of,
    trimmed,
)


def test_frames_of_another_attempt_are_dropped() -> None:
    """Attempts never mix: only the bound attempt's text is taken."""
    log = log_with([["a"]])

    taken = log.append_text(frames([["a"], ["b"]], attempt=2)[1])

    assert taken is False
    assert text_of(read_all(log.open(None))) == "a"


def test_a_new_attempt_continues_where_the_text_overlaps() -> None:
    """A replay whose chunks are cut differently joins at the byte once trimmed; digests hold."""
    log = log_with([["one "], ["two "]])
    reader = log.open(None)
    seen = read_all(reader)
    log.begin_attempt(2)
    log.append_event(RESUMED)

    answers = [log.append_text(frame) for frame in frames([["one "], ["two th", "ree"]], attempt=2)]

    assert answers == [False, True]
    assert trimmed(seen + read_all(reader), b"") == b"one two three"
    assert log.digest() == digest(b"one two three")
    for have in (b"", b"one ", b"one two ", b"one two th", b"one two three"):
        assert trimmed(read_all(log.open(point(have))), have) == b"one two three"


def test_after_an_accepted_gap_older_places_are_refused_and_later_ones_go_on() -> None:
    """What lies before a gap is gone: who lacks it is told, who has it reads on."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    made = frames([["one "], ["two "], ["three "], ["four"]])
    log.append_text(made[0])
    behind, ahead = log.open(None), log.open(point(b"one two "))
    assert text_of(read_all(behind)) == "one "

    assert log.append_text(made[2]) is None
    assert log.append_text(made[2], accept_gap=True) is True
    assert log.append_text(made[3]) is True

    assert (log.oldest_offset, log.next_offset, log.next_index) == (8, 18, 4)
    assert log.digest() is None
    with pytest.raises(RefusalError) as caught:
        behind.take()
    assert caught.value.refusal.metadata["oldest_offset"] == "8"
    assert text_of(read_all(ahead)) == "three four"
    assert [refused(log, it) for it in (None, point(b"one "))] == [8, 8]
    assert refused(log, events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=1)) == 8


def test_resumed_reader_is_not_told_again_what_it_knows() -> None:
    """`started` of the attempt that the reader names is not repeated."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.append_event(STARTED)
    for frame in frames([["a"], ["b"]]):
        log.append_text(frame)

    events = read_all(log.open(point(b"")))

    assert [event.WhichOneof("event") for event in events] == ["tokens", "tokens"]


def test_nothing_is_added_to_a_sealed_log_until_another_attempt_begins() -> None:
    """The job ended with what is here; one that was displaced in vain runs after all."""
    log = log_with([["one "]])
    log.sealed = True

    late = frames([["one "], ["two"]])[1]
    assert log.append_text(late) is False
    log.begin_attempt(2)

    assert log.append_text(replace(late, attempt=2)) is True


@given(pieces_lists, st.data())
def test_after_a_restart_a_log_ends_where_its_job_did(
    batches: list[list[str]], data: st.DataObject
) -> None:
    """A host holds more than was told; what comes is cut between two pieces, never within one."""
    pieces = [piece for batch in batches for piece in batch]
    count = data.draw(st.integers(0, len(pieces)))
    told = "".join(pieces[:count]).encode()
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.finish(END, len(told), digest(told))

    for frame in frames(batches):
        log.append_text(frame)

    assert log.complete
    assert (log.next_offset, log.digest()) == (len(told), digest(told))
    reader = log.open(None)
    entries = reader.take()
    assert entries[-1] == END
    shown = [orchestrator_service_pb2.StreamTokensResponse.FromString(e) for e in entries[:-1]]
    text = "".join(p for response in shown for p in response.events[0].tokens.pieces)
    assert text.encode() == told


def test_who_has_all_of_the_text_is_told_the_outcome_without_it() -> None:
    """No host need come back for that; another text is no proof."""
    log = OutputLog(ROOMY)
    log.finish(END, 8, digest(b"one two "))

    reader, other = log.open(point(b"one two ")), log.open(point(b"one xxx "))

    assert (reader.take(), reader.done) == ([END], True)
    assert (other.take(), other.done) == ([], False)


def test_a_reader_from_before_a_restart_is_told_of_the_attempt_that_goes_on() -> None:
    """Text of a later attempt follows its announcement, also where others heard it at byte 0."""
    log = OutputLog(ROOMY)
    log.begin_attempt(3)
    log.append_event(
        encode_event(events_pb2.JobEvent(started=events_pb2.Started(attempt=3, pool_id="p")))
    )
    reader = log.open(point(b"one two"))
    first, second = frames([["one ", "two"], [" three"]], attempt=3)
    log.append_text(first)
    before = read_all(reader)
    log.append_text(second)
    after = read_all(reader)

    assert before == []
    assert [event.WhichOneof("event") for event in after] == ["resumed", "tokens"]
    assert (after[0].resumed.attempt, after[0].resumed.text_offset) == (3, 7)
    assert (after[0].resumed.pool_id, after[0].resumed.mode) == (
        "p",
        events_pb2.RESUME_MODE_VERIFIED_REPLAY,
    )


def test_an_attempt_is_announced_once() -> None:
    """A reader that was told by the event itself is not told again."""
    log = log_with([["a"]])
    reader = log.open(point(b"a"))
    log.begin_attempt(2)
    log.append_event(RESUMED)
    for frame in frames([["a"], ["b"], ["c"]], attempt=2):
        log.append_text(frame)

    kinds = [event.WhichOneof("event") for event in read_all(reader)]

    assert kinds == ["resumed", "tokens", "tokens"]


def test_the_outcome_of_a_cancelled_job_reaches_who_has_text_that_is_gone() -> None:
    """After a restart nobody knows how much there was: what the reader has stands."""
    log = OutputLog(ROOMY)
    log.finish(encode_event(events_pb2.JobEvent(end=events_pb2.End(text_digest=5))), None)

    (told,) = read_all(log.open(point(b"some")))
    (fresh,) = read_all(log.open(None))

    assert told.end.text_bytes == 4
    assert not told.end.HasField("text_digest")
    assert fresh.end.text_bytes == 0


def test_the_outcome_reaches_who_has_more_text_than_came_back() -> None:
    """After a restart a host told a part of it and was lost: the job failed for everybody."""
    log = log_with([["one "], ["two "]])
    log.doubtful = True
    waiting = log.open(point(b"one two three "))
    assert read_all(waiting) == []
    log.finish(encode_event(events_pb2.JobEvent(error=status_pb2.Status(code=10))), None)

    told = [read_all(waiting), read_all(log.open(point(b"one two three ")))]

    assert [[event.WhichOneof("event") for event in events] for events in told] == [["error"]] * 2
    log.doubtful = False
    with pytest.raises(RefusalError, match="beyond the output"):
        log.open(point(b"one two three "))
