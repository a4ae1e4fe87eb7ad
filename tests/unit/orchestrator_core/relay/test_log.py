"""The output log against a plain list of what was sent."""

import hashlib
from dataclasses import replace

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import MalformedOutputError, RefusalError
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.reader import Reader
from orchestrator_core.wire.frames import encode_event, encode_token_event

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


def test_no_reader_gets_text_before_it_was_told_who_makes_it() -> None:
    """A frame from the beginning on, with something new at its end, displaces all that was here."""
    log = OutputLog(200)
    log.begin_attempt(1)
    log.append_event(STARTED)
    pieces = ["x" * 20 for _ in range(8)]
    for frame in frames([[piece] for piece in pieces]):
        log.append_text(frame)
    again = frames([[*pieces, "new"]])[0]
    assert log.append_text(again)
    assert log.oldest_offset == 0

    reader = log.open(None)
    told = reader.take()

    assert told == [STARTED, encode_token_event(again.chunk)]
    assert reader.take() == []


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
def test_resume_at_any_character_gives_exactly_the_rest_once_trimmed(
    batches: list[list[str]], data: st.DataObject
) -> None:
    """A reader that has any prefix of whole characters gets the rest, proved by the digests."""
    text = "".join(piece for pieces in batches for piece in pieces)
    head = text[: data.draw(st.integers(0, len(text)))].encode()
    taken = data.draw(st.integers(0, len(batches)))
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    made = frames(batches)
    for frame in made[:taken]:
        log.append_text(frame)

    # The point may lie behind, within or ahead of what is held so far.
    reader = log.open(point(head))
    events = read_all(reader)
    for frame in made[taken:]:
        log.append_text(frame)
        events += read_all(reader)
    log.finish(END, log.next_offset)
    events += read_all(reader)

    assert trimmed(events[:-1], head) == text.encode()
    assert events[-1].WhichOneof("event") == "end"


@given(pieces_lists.filter(bool), st.data())
def test_resume_ahead_with_another_digest_is_refused_when_the_place_is_reached(
    batches: list[list[str]], data: st.DataObject
) -> None:
    """Who waits for a place beyond the output is told there that its text is another one."""
    made = frames(batches)
    ends = [frame.text_offset + frame.text_bytes for frame in made]
    place = data.draw(st.sampled_from(ends))
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    resume = events_pb2.ResumePoint(attempt=1, text_offset=place, prefix_digest=1)
    reader = log.open(resume)

    for frame in made[: ends.index(place)]:
        log.append_text(frame)
        assert read_all(reader) == []
    log.append_text(made[ends.index(place)])

    with pytest.raises(RefusalError) as caught:
        reader.take()
    assert caught.value.refusal.reason is Reason.RESUME_WINDOW


@given(pieces_lists.filter(bool), pieces_lists.filter(bool), st.integers(200, 2_000))
def test_digest_and_memory_whatever_is_evicted(
    batches: list[list[str]], more: list[list[str]], cap: int
) -> None:
    """The digest of all text is known at any time, and what is held stays within the cap."""
    log = log_with(batches + more, cap)
    text = "".join(piece for pieces in batches + more for piece in pieces).encode()
    held_before = log.bytes_held

    assert log.digest() == digest(text)
    assert log.output_bytes <= cap
    assert log.evict_all() == held_before
    assert (log.digest(), log.oldest_offset, log.bytes_held) == (digest(text), len(text), 0)


@given(pieces_lists.filter(bool), st.integers(0, 1 << 64 - 1))
def test_resume_with_another_digest_is_refused(batches: list[list[str]], wrong: int) -> None:
    """A client whose text differs from ours is told so instead of being given the rest."""
    log = log_with(batches)
    offset = log.next_offset
    right = digest("".join(piece for pieces in batches for piece in pieces).encode())
    resume = events_pb2.ResumePoint(
        attempt=1, text_offset=offset, prefix_digest=wrong if wrong != right else wrong ^ 1
    )

    assert refused(log, resume) == 0


def test_another_text_within_a_chunk_is_refused() -> None:
    """A place inside a chunk is proven from the text that is held, across chunks."""
    log = log_with([["ab", "cdé"], ["fgh", "i"]])

    with pytest.raises(RefusalError) as caught:
        log.open(point("abcdéfX".encode()))
    reader = log.open(point("abcdéfg".encode()))

    assert caught.value.refusal.reason is Reason.RESUME_WINDOW
    assert log.digest_within(3) == digest(b"abc")
    assert len(reader.take()) == 1


def test_a_place_whose_text_is_not_held_has_no_digest() -> None:
    """Without all text before it nothing can be proven here: the reader's own check remains."""
    log = log_with([["ab"], ["cd"]])
    log.evict_all()

    assert log.digest_within(3) is None


def test_text_beyond_the_cap_is_evicted_and_its_readers_are_told_the_oldest_offset() -> None:
    """Memory stays bounded; a reader that fell behind gets RESUME_WINDOW with what is held."""
    log = OutputLog(2_000)
    log.begin_attempt(1)
    slow = log.open(None)

    for frame in frames([["word "]] * 500):
        log.append_text(frame)

    assert log.output_bytes <= 2_000
    with pytest.raises(RefusalError) as caught:
        slow.take()
    oldest = int(caught.value.refusal.metadata["oldest_offset"])
    assert 0 < oldest < log.next_offset
    assert refused(log, None) == refused(log, point(b"word")) == oldest
    have = b"word " * (oldest // 5)
    assert trimmed(read_all(log.open(point(have))), have) == b"word " * 500


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


def test_the_beginning_is_refused_once_everything_was_evicted() -> None:
    """An outcome without the text before it would look like a job without output."""
    log = log_with([["one "]])
    log.finish(END, 4)
    log.evict_all()

    assert [refused(log, it) for it in (None, point(b"on"))] == [4, 4]
    assert [e.WhichOneof("event") for e in read_all(log.open(point(b"one ")))] == ["end"]


def test_a_place_beyond_the_end_is_refused() -> None:
    """Waiting for text makes sense only while some can come."""
    log = log_with([["one "]])
    reader = log.open(point(b"one two "))
    assert reader.take() == []

    log.finish(END, None)

    assert refused(log, point(b"one two ")) == 0
    with pytest.raises(RefusalError):
        reader.take()


def test_an_outcome_can_be_put_behind_text_that_a_host_still_holds() -> None:
    """After a restart a cancelled job's text is taken, and comes before its outcome."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.finish(END, 8)
    assert not log.complete

    reader = log.open(point(b"one "))
    answers = [log.append_text(frame) for frame in frames([["one "], ["two "], ["three"]])]

    assert answers == [True, True, False]
    assert text_of(read_all(log.open(None))) == "one two "
    assert [e.WhichOneof("event") for e in read_all(reader)] == ["tokens", "end"]
    assert reader.take() == []


def test_a_malformed_chunk_is_refused() -> None:
    """What cannot be read, or is not what its frame says, never reaches a client."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    (good,) = frames([["one "]])
    for bad in (replace(good, chunk=b"\xff"), replace(good, text_bytes=9)):
        with pytest.raises(MalformedOutputError, match="bytes at 0 cannot be read"):
            log.append_text(bad)

    assert log.append_text(good) is True
    assert text_of(read_all(log.open(None))) == "one "


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


def test_an_event_is_held_as_long_as_the_text_after_it() -> None:
    """Who begins there is told it, though others have acknowledged a part of that text."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    log.append_event(STARTED)
    first, second = frames([["ab"], ["cd"]])
    reader = log.open(None)
    assert log.append_text(first)

    reader.acked = 1
    kept = log.drop_acknowledged()

    assert (kept, log.oldest_offset) == (0, 0)
    newcomer = log.open(None)
    assert newcomer.take()[0] == STARTED
    log.close(newcomer)
    assert log.append_text(second)
    reader.acked = 3
    assert log.drop_acknowledged() > 0
    assert log.oldest_offset == 2


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
