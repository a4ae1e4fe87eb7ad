"""Text that was evicted here and comes back from its host for one reader. LO-301."""

import asyncio
from dataclasses import replace

import pytest

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.errors import RefusalError
from orchestrator_core.grpc_options import MESSAGE_BYTES_MAX
from orchestrator_core.relay import marks, sides
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.retelling import starts, text_of
from orchestrator_core.relay.sides import SideRead, Sides, Source
from orchestrator_core.wire.frames import encode_event
from orchestrator_core.wire.plausible import CHUNK_BYTES_MAX
from tests.unit.orchestrator_core.relay.logs import (
    STARTED,
    frames,
    log_with,
    point,
    read_all,
    trimmed,
)

WORDS = [[f"word{number:03d} "] for number in range(60)]
ASKED = 7
RESUMED = events_pb2.JobEvent(
    resumed=events_pb2.Resumed(attempt=2, mode=events_pb2.RESUME_MODE_CONTINUE, text_offset=8)
)


def evicted() -> tuple[OutputLog, list[Frame]]:
    """A log that lacks the first of its pieces, and all of them as frames."""
    log, all_frames = OutputLog(1_024), frames(WORDS)
    log.begin_attempt(1)
    for frame in all_frames:
        log.append_text(frame)
    assert log.oldest_offset > 0
    return log, all_frames


def text(read: SideRead) -> str:
    """The text that was gathered."""
    return b"".join(text_of(item.entry) for item in read.items).decode()


def test_a_read_gathers_what_is_missing_and_no_more() -> None:
    """From the chunk in which it begins up to what the log holds."""
    log, all_frames = evicted()
    read = SideRead(log, 10, ASKED)

    for frame in all_frames:
        read.offer(frame, ASKED)

    assert read.over.is_set()
    assert read.items[0].text_offset == 8
    assert read.items[-1].end == log.oldest_offset
    assert text(read) == "".join(word for (word,) in WORDS)[8 : log.oldest_offset]


def test_a_read_brings_a_bounded_part() -> None:
    """A reader that is far behind takes several."""
    log, all_frames = evicted()
    read = SideRead(log, 0, ASKED, bytes_max=100)

    for frame in all_frames:
        read.offer(frame, ASKED)

    assert read.over.is_set()
    assert read.items[-1].end < log.oldest_offset
    assert sum(len(item.entry) for item in read.items) < 100 + len(read.items[-1].entry)


def test_what_was_written_before_the_request_says_nothing() -> None:
    """It may be ahead of a place that the host still holds."""
    log, all_frames = evicted()
    read = SideRead(log, 0, ASKED)

    read.offer(all_frames[5], ASKED - 1)
    read.offer(replace(all_frames[0], attempt=2), ASKED)
    before = read.over.is_set()
    read.offer(all_frames[0], ASKED)

    assert not before
    assert [item.text_offset for item in read.items] == [0]


def test_an_answer_that_begins_later_ends_the_read() -> None:
    """The host holds nothing before it."""
    log, all_frames = evicted()
    read = SideRead(log, 0, ASKED)

    read.offer(all_frames[1], ASKED)

    assert read.over.is_set()
    assert read.items == []


def test_a_chunk_that_is_broken_ends_the_read() -> None:
    """What the host sends twice may be broken the second time."""
    log, all_frames = evicted()
    read = SideRead(log, 0, ASKED)

    read.offer(replace(all_frames[0], chunk=b"\xff"), ASKED)

    assert read.over.is_set()
    assert read.items == []


async def test_the_host_goes_on_where_it_was() -> None:
    """Whether it answered or not, and one read of a job follows the other."""
    log, all_frames = evicted()
    held, asked = Sides(), list[int]()

    def ask(first_index: int) -> int:
        asked.append(first_index)
        return ASKED

    first = asyncio.create_task(held.read(Source("job", "host", ask), log, 0))
    second = asyncio.create_task(held.read(Source("job", "host", ask), log, 16))
    await asyncio.sleep(0)
    for frame in all_frames:
        held.offer("job", frame, ASKED)
    items = await first
    await asyncio.sleep(0)
    for frame in all_frames:
        held.offer("job", frame, ASKED)

    assert items is not None
    assert (items[0].text_offset, (await second or [])[0].text_offset) == (0, 16)
    assert asked == [0, 60, 0, 60]
    held.offer("job", all_frames[0], ASKED)


async def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may be cut off, and come back."""
    monkeypatch.setattr(sides, "PATIENCE_S", 0.01)
    log, _ = evicted()

    assert await Sides().read(Source("job", "host", lambda _: ASKED), log, 0) is None
    assert await Sides().read(Source("job", "host", lambda _: None), log, 0) is None


def test_places_to_ask_from_are_remembered_as_text_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all of an output would be sent again for its last part. Bounded."""
    monkeypatch.setattr(marks, "MARK_BYTES", 64)
    monkeypatch.setattr(marks, "MARKS_MAX", 2)
    log, all_frames = OutputLog(512), frames(WORDS)
    log.begin_attempt(1)
    for frame in all_frames:
        log.append_text(frame)

    known = log.index_before(log.oldest_offset)

    assert known > 0
    assert all_frames[known].text_offset <= log.oldest_offset
    assert log.index_before(0) == 0
    assert len(log._marks) == 2
    log.begin_attempt(2)
    assert log.index_before(log.oldest_offset) == 0


def test_a_reader_takes_its_side_first_and_then_the_log() -> None:
    """Nothing is missing between the two, and nothing comes twice."""
    log, all_frames = evicted()
    read = SideRead(log, 0, ASKED)
    for frame in all_frames:
        read.offer(frame, ASKED)
    with pytest.raises(RefusalError):
        log.open(None)
    reader = log.open(None, late=True)
    lacked = reader.lacks
    reader.side.extend(read.items)

    entries = [*reader.take(), *reader.take()]

    assert lacked
    assert not reader.lacks
    assert b"".join(map(text_of, entries)).decode() == "".join(word for (word,) in WORDS)


def test_what_lies_at_a_side_is_sent_in_messages_that_clients_take() -> None:
    """The largest chunk there is may come after as much as one read brings."""
    largest = "x" * (CHUNK_BYTES_MAX - 256)
    log, all_frames = OutputLog(1 << 10), frames([["y" * 50_000]] * 5 + [[largest], ["z" * 2_000]])
    log.begin_attempt(1)
    for frame in all_frames:
        log.append_text(frame)
    read = SideRead(log, 0, ASKED)
    for frame in all_frames:
        read.offer(frame, ASKED)
    reader = log.open(None, late=True)
    reader.side.extend(read.items)
    sizes = []

    while reader.side:
        sizes.append(sum(map(len, reader.take())))

    assert sum(sizes) > len(largest) + 250_000
    assert max(sizes) < MESSAGE_BYTES_MAX


def test_the_digest_of_a_late_reader_is_compared() -> None:
    """Its text may be another job's; what comes back proves it."""
    log, all_frames = evicted()
    read = SideRead(log, 8, ASKED)
    for frame in all_frames:
        read.offer(frame, ASKED)
    point = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=1)
    reader = log.open(point, late=True)
    reader.side.extend(read.items)

    with pytest.raises(RefusalError, match="digest"):
        reader.take()


class Host:
    """Counts what it is asked, and answers when told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0

    def of(self, job_id: str) -> Source:
        """This host as the source of a job."""
        return Source(job_id, self.name, self.ask)

    def ask(self, _first_index: int) -> int:
        """Any command has the same number."""
        self.asked += 1
        return ASKED


async def test_a_silent_host_holds_up_only_who_reads_from_it() -> None:
    """However many readers it has, another host is asked at once."""
    log, all_frames = evicted()
    held, slow, fast = Sides(), Host("slow"), Host("fast")
    jobs = [f"job{number}" for number in range(100)]
    waiting = [asyncio.create_task(held.read(slow.of(job_id), log, 0)) for job_id in jobs]
    same = [asyncio.create_task(held.read(slow.of("job0"), log, 0)) for _ in range(100)]
    await asyncio.sleep(0)

    reading = asyncio.create_task(held.read(fast.of("another"), log, 0))
    await asyncio.sleep(0)
    for frame in all_frames:
        held.offer("another", frame, ASKED)
    items = await asyncio.wait_for(reading, 1)

    assert items
    assert slow.asked == sides.SIDES_PER_HOST
    for task in (*waiting, *same):
        task.cancel()
    await asyncio.gather(*waiting, *same, return_exceptions=True)
    assert held._reads == {}
    assert (held._jobs._rooms, held._hosts._rooms) == ({}, {})


async def test_readers_of_one_job_take_one_place_of_its_host() -> None:
    """Those who wait for each other do not keep the host's other jobs waiting."""
    log, _ = evicted()
    held, host = Sides(), Host("host")
    same = [asyncio.create_task(held.read(host.of("one"), log, 0)) for _ in range(20)]
    await asyncio.sleep(0)

    other = asyncio.create_task(held.read(host.of("other"), log, 0))
    await asyncio.sleep(0)

    assert set(held._reads) == {"one", "other"}
    for task in (*same, other):
        task.cancel()
    await asyncio.gather(*same, other, return_exceptions=True)


def test_an_item_that_was_dropped_is_not_there() -> None:
    """A reader that waits for its text is passed by what is evicted meanwhile."""
    log, all_frames = OutputLog(1_024), frames(WORDS)
    log.begin_attempt(1)
    for frame in all_frames[:5]:
        log.append_text(frame)
    reader = log.open(None, late=True)
    for frame in all_frames[5:]:
        log.append_text(frame)
    assert reader.lacks
    read = SideRead(log, 0, ASKED)
    for frame in all_frames:
        read.offer(frame, ASKED)
    reader.side.extend(read.items)

    assert log.item(0) is None
    assert log.item(log.end) is None
    text_bytes = sum(map(len, map(text_of, [*reader.take(), *reader.take()])))
    assert text_bytes == log.next_offset


@pytest.mark.parametrize("restarted", [False, True])
def test_who_comes_late_to_a_later_attempt_hears_how_it_began(*, restarted: bool) -> None:
    """`started` of the first and `resumed` of the present one, before text which that one has."""
    log, all_frames = OutputLog(1_024), frames(WORDS)
    if not restarted:
        log.begin_attempt(1)
        log.append_event(STARTED)
        log.append_text(all_frames[0])
    log.begin_attempt(2)
    log.append_event(encode_event(RESUMED))
    again = [replace(frame, attempt=2) for frame in all_frames]
    for frame in again:
        log.append_text(frame)
    read = SideRead(log, 0, ASKED)
    for frame in again:
        read.offer(frame, ASKED)
    reader, beginning = log.open(None, late=True), log.beginning()
    assert beginning is not None
    reader.side.extend([beginning, *read.items])

    items = []
    while not reader.caught_up:
        items += reader.take_items(1 << 20, 1 << 20)

    told = [(item.attempt, item.text_offset) for item in items if not item.text_bytes]
    assert told == ([(2, 0)] if restarted else [(1, 0), (2, 0)])
    assert starts(items[0].entry) is not restarted
    whole = "".join(word for (word,) in WORDS)
    assert b"".join(text_of(item.entry) for item in items).decode() == whole


@pytest.mark.parametrize("kept", [1, 3])
def test_text_of_the_attempt_before_is_told_as_of_the_present_one(kept: int) -> None:
    """A late reader got that one's text first, and never goes back to an earlier attempt. LO-304.

    The log still holds some text as the attempt before made it, and a replay repeats it.
    """
    all_frames = frames(WORDS[:6])
    log = OutputLog(1 << 10)
    log.begin_attempt(1)
    for frame in all_frames[:4]:
        log.append_text(frame)
    log._drop(4 - kept)
    log.begin_attempt(2)
    log.append_event(encode_event(RESUMED))
    again = frames(WORDS[:6], attempt=2)
    for frame in again:
        log.append_text(frame)
    read = SideRead(log, 0, ASKED)
    for frame in again:
        read.offer(frame, ASKED)
    reader = log.open(None, late=True)
    reader.side.extend(read.items)

    events = read_all(reader)

    attempts = [event.tokens.attempt for event in events if event.HasField("tokens")]
    assert attempts == [2] * 6
    assert trimmed(events, b"") == b"".join(word.encode() for (word,) in WORDS[:6])


def test_who_has_text_of_the_present_attempt_is_told_no_earlier_one() -> None:
    """Nor one that comes back with it to a log that begins with the attempt before. LO-304."""
    log = log_with(WORDS[:4])
    had = WORDS[0][0].encode()

    events = read_all(log.open(point(had, attempt=2)))

    assert {event.tokens.attempt for event in events} == {2}
    assert trimmed(events, had) == b"".join(word.encode() for (word,) in WORDS[:4])


def test_a_side_of_the_attempt_before_is_told_as_of_the_present_one() -> None:
    """Where only the host of that one has what a reader lacks."""
    log, all_frames = evicted()
    had = WORDS[0][0].encode()
    read = SideRead(log, len(had), ASKED)
    for frame in all_frames:
        read.offer(frame, ASKED)
    reader = log.open(point(had, attempt=2), late=True)
    reader.side.extend(read.items)

    events = read_all(reader)

    assert {event.tokens.attempt for event in events} == {2}
    assert trimmed(events, had) == b"".join(word.encode() for (word,) in WORDS)
