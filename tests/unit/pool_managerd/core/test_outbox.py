"""The sender of one stream against a naive reader."""

from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.attempts import AttemptKey, AttemptLog, EndReason, Terminal
from pool_managerd.core.outbox import Frame, Outbox, RefusalReason, Refused

WINDOW = 20


class Reader:
    """What an orchestrator makes of the frames."""

    def __init__(self) -> None:
        self.text: dict[int, str] = {}
        self.next_index: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        self.started: dict[int, int] = {}

    def read(self, frame: Frame) -> None:
        """Applies one frame in the order of the wire contract."""
        for handle, _warm in frame.started:
            self.started[handle] = self.started.get(handle, 0) + 1
        for handle, _log, chunk in frame.chunks:
            assert handle not in self.ended, "nothing follows the end"
            assert chunk.first_index == self.next_index.get(handle, 0), "no gap, no repetition"
            assert chunk.text_offset == len(self.text.get(handle, "").encode())
            self.text[handle] = self.text.get(handle, "") + "".join(chunk.pieces)
            self.next_index[handle] = chunk.first_index + len(chunk.pieces)
        for handle, log in frame.ended:
            assert len(self.text.get(handle, "").encode()) == log.text_bytes
            self.ended[handle] = self.ended.get(handle, 0) + 1


def new_log(job_id: str) -> AttemptLog:
    """An empty log that has started."""
    log = AttemptLog(AttemptKey(job_id, 1), ("p", "p-1"))
    log.started = True
    return log


def drain(outbox: Outbox, reader: Reader) -> None:
    """Sends what can be sent now."""
    for _ in range(1000):
        frame = outbox.take()
        if frame is None:
            return
        reader.read(frame)
    raise AssertionError("the outbox never comes to rest")


def grow(log: AttemptLog, text: str | None) -> None:
    """Appends a piece, or ends the log."""
    if text is None:
        log.end(Terminal(EndReason.EOS))
    elif log.terminal is None:
        log.append(text)


steps = st.lists(
    st.tuples(
        st.sampled_from(("append", "append", "append", "send", "ack", "end")),
        st.integers(1, 3),
        st.text(alphabet="aö🍲", max_size=9),
    ),
    max_size=80,
)


@given(steps)
def test_every_piece_arrives_once_in_order_within_the_window(
    script: list[tuple[str, int, str]],
) -> None:
    """Whatever is appended, sent and acknowledged when, the reader ends with the text. LO-302."""
    outbox = Outbox(WINDOW, 400, lambda: None)
    reader = Reader()
    logs = {handle: new_log(f"j{handle}") for handle in (1, 2, 3)}
    acked = dict.fromkeys(logs, 0)
    for handle, log in logs.items():
        outbox.bind(handle, log, 0)
    for action, handle, text in script:
        log = logs[handle]
        if action in ("append", "end"):
            grow(log, text if action == "append" else None)
            outbox.touch(log)
        elif action == "send":
            drain(outbox, reader)
        elif action == "ack":
            acked[handle] = len(reader.text.get(handle, "").encode())
            outbox.ack(handle, acked[handle])
        # A single piece may exceed an empty window; the longest here has nine four-byte characters.
        under_way = len(reader.text.get(handle, "").encode()) - acked[handle]
        assert under_way <= max(WINDOW, 36)

    for log in logs.values():
        log.end(Terminal(EndReason.EOS))
        outbox.touch(log)
    for _ in range(200):
        drain(outbox, reader)
        for handle in logs:
            outbox.ack(handle, len(reader.text.get(handle, "").encode()))

    assert outbox.drained
    for handle, log in logs.items():
        assert len(reader.text.get(handle, "").encode()) == log.text_bytes
        assert reader.next_index.get(handle, 0) == log.next_index
        assert (reader.started[handle], reader.ended[handle]) == (1, 1)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=20), st.data())
def test_seek_sends_again_from_any_held_piece(pieces: list[str], data: st.DataObject) -> None:
    """After a seek output follows from that piece, and the end is not repeated. LO-301."""
    log, frames = new_log("j"), []
    outbox = Outbox(10_000, 10_000, lambda: None)
    for piece in pieces:
        log.append(piece)
    log.end(Terminal(EndReason.EOS))
    outbox.bind(1, log, 0)
    while (frame := outbox.take()) is not None:
        frames.append(frame)
    first = data.draw(st.integers(0, len(pieces) - 1))

    outbox.seek(1, first)
    again = outbox.take()

    assert again is not None
    assert [p for _, _, chunk in again.chunks for p in chunk.pieces] == pieces[first:]
    assert again.ended == ()
    assert sum(len(frame.ended) for frame in frames) == 1


def test_a_busy_handle_does_not_starve_another() -> None:
    """Handles take turns when a frame is full. LO-302."""
    outbox = Outbox(100_000, 500, lambda: None)
    logs = [new_log("a"), new_log("b")]
    for handle, log in enumerate(logs, 1):
        outbox.bind(handle, log, 0)
        for _ in range(20):
            log.append("x" * 50)
        outbox.touch(log)

    first, second = outbox.take(), outbox.take()

    assert first is not None
    assert second is not None
    handles = [{handle for handle, _, _ in frame.chunks} for frame in (first, second)]
    assert set.union(*handles) == {1, 2}


def test_refusals_go_first_and_once() -> None:
    """A refusal is in the next frame and in no other."""
    outbox = Outbox(10, 1000, lambda: None)
    refused = Refused(4, RefusalReason.NO_SLOT, "all slots are taken")
    outbox.refuse(refused)

    frame = outbox.take()

    assert frame is not None
    assert frame.refused == (refused,)
    assert outbox.take() is None


def test_whoever_leaves_waits_for_the_ends_of_all_and_hears_when_nobody_wants_one() -> None:
    """An attempt that lets go late has an end too; a released one has none that is sent."""
    rings = list[int]()
    outbox = Outbox(WINDOW, 400, lambda: rings.append(1))
    late, released = new_log("late"), new_log("released")
    for handle, log in ((1, late), (2, released)):
        outbox.bind(handle, log, 0)
    drain(outbox, Reader())
    assert not outbox.drained

    late.end(Terminal(EndReason.EOS))
    outbox.touch(late)
    drain(outbox, Reader())
    assert not outbox.drained
    rings.clear()
    outbox.unbind(2)

    assert (rings, outbox.drained) == ([1], True)
