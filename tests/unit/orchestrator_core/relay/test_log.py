"""The output log against a plain list of what was sent."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import MalformedOutputError, RefusalError
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.frames import encode_token_event
from tests.unit.orchestrator_core.relay.logs import (
    END,
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


def test_repeated_frames_change_nothing_and_a_gap_is_reported() -> None:
    """A frame that is known is dropped; one that lies ahead is a gap."""
    log = OutputLog(ROOMY)
    log.begin_attempt(1)
    first, second, third = frames([["a"], ["b"], ["c"]])

    answers = [log.append_text(frame) for frame in (first, first, third, second, third)]

    assert answers == [True, False, None, True, True]
    assert text_of(read_all(log.open(None))) == "abc"


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
