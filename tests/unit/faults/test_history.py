"""Histories on disk."""

import pytest

from faults import history as h

EVENTS = (
    h.EnqueueSent(at_ms=1, client="c1", request_id="r1", priority="BATCH"),
    h.TextDelivered(
        at_ms=2,
        client="c1",
        stream="s1",
        job_id="j1",
        attempt=1,
        text_offset=0,
        text="🚀\n",
        prefix_digest=(1 << 64) - 1,
    ),
    h.Recovered(at_ms=3, epoch=2, states={"j1": "QUEUED"}),
)


def test_lines_read_back_to_the_same_events() -> None:
    """Writing and reading is the identity, one line for each event."""
    lines = h.write(EVENTS)

    assert lines.count(b"\n") == len(EVENTS)
    assert h.read(lines) == EVENTS


def test_an_unfinished_last_line_is_dropped() -> None:
    """A writer that was killed amid a line costs that line alone."""
    lines = h.write(EVENTS)

    assert h.read(lines[:-5]) == EVENTS[:2]


def test_a_broken_line_is_named() -> None:
    """Anything else that is not an event is refused with its number."""
    with pytest.raises(ValueError, match="line 2"):
        h.read(h.write(EVENTS[:1]) + b'{"type":"Nothing"}\n')


def test_merged_histories_are_in_order_of_time() -> None:
    """Each observer keeps its own order where times are equal."""
    first = (h.Healed(at_ms=5), h.Crashed(at_ms=7, process="a"))
    second = (h.Crashed(at_ms=5, process="b"), h.Restarted(at_ms=6, process="b"))

    assert h.merge(first, second) == (first[0], second[0], second[1], first[1])
