"""What a continuation follows, against the text that was sent. LO-304."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.relay.delivered import delivered
from orchestrator_core.relay.items import Frame, text_item
from orchestrator_core.relay.log import OutputLog
from tests.unit.orchestrator_core.relay.logs import STARTED, digest, frames, log_with, sent

texts = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=12)


@given(texts, st.data())
def test_the_text_is_put_together_however_it_was_cut(
    pieces: list[str], data: st.DataObject
) -> None:
    """Chunks may overlap after a reconnect: what comes twice counts once."""
    log = OutputLog(1 << 20)
    log.begin_attempt(1)
    at, with_ids = 0, data.draw(st.booleans())
    while at < len(pieces):
        log.append_event(STARTED)
        start = data.draw(st.integers(0, at))
        stop = data.draw(st.integers(at + 1, len(pieces)))
        assert log.append_text(sent(pieces, start, stop, ids=with_ids))
        at = stop

    found = delivered(log)

    text = "".join(pieces)
    assert found is not None
    assert (found.text, found.text_bytes) == (text, len(text.encode()))
    assert found.digest == digest(text.encode())
    assert found.token_ids == (tuple(range(len(pieces))) if with_ids else ())
    assert found.tokens == len(pieces)


@pytest.mark.parametrize("with_text", [True, False])
def test_ids_that_are_not_known_for_all_of_the_text_are_not_told(*, with_text: bool) -> None:
    """A host tells what it was given to continue without ids: those of the rest mean other text."""
    log = OutputLog(1 << 20)
    log.begin_attempt(1)
    batch = events_pb2.TokenBatch(
        attempt=1,
        prefix_digest=digest(b""),
        pieces=["a " if with_text else "", "b c ", "d "],
        token_ids=[7, 8, 9],
        token_counts=[0, 2, 1],
    )
    size = sum(len(piece) for piece in batch.pieces)
    assert log.append_text(Frame(1, 0, 3, 0, size, batch.SerializeToString()))

    found = delivered(log)

    assert found is not None
    assert found.tokens == 4
    assert found.token_ids == (() if with_text else (7, 8, 9))


def test_a_piece_that_was_known_in_part_is_counted_without_ids() -> None:
    """So a client may get one token more or less, but never other text."""
    log = OutputLog(1 << 20)
    log.begin_attempt(1)
    assert log.append_text(sent(["one "], 0, 1, ids=True))
    assert log.append_text(sent(["one two "], 0, 1, ids=True))

    found = delivered(log)

    assert found is not None
    assert (found.text, found.tokens, found.token_ids) == ("one two ", 2, ())


def test_what_was_evicted_cannot_be_continued() -> None:
    """The beginning of the text is needed, not only its digest."""
    log = log_with([["x" * 400]] * 10, bytes_max=1_000)

    assert log.digest() is not None
    assert delivered(log) is None


def test_what_was_evicted_may_be_brought_again() -> None:
    """All of it, from the beginning on; what comes twice counts once. LO-304."""
    pieces = [f"{number:03d} " * 40 for number in range(10)]
    made = [sent(pieces, number, number + 1, ids=True) for number in range(10)]
    log = OutputLog(1_000)
    log.begin_attempt(1)
    for frame in made:
        assert log.append_text(frame)
    first_held = log.oldest_offset // 160
    assert 0 < first_held < 9
    brought = [text_item(frame) for frame in made[: first_held + 1]]

    found = delivered(log, brought)

    assert found is not None
    assert (found.text, found.tokens) == ("".join(pieces), 10)
    assert found.token_ids == tuple(range(10))
    assert delivered(log, brought[: first_held - 1]) is None


def test_after_a_gap_nothing_is_certain() -> None:
    """Text that was never seen here may have been delivered."""
    log = OutputLog(1 << 20)
    log.begin_attempt(1)
    assert log.append_text(frames([["one"], ["two"]])[1], accept_gap=True)

    assert delivered(log) is None


def test_a_log_begun_anew_is_doubted_until_its_attempt_told_all() -> None:
    """LO-305: after a restart readers may have more than has come back from the host so far."""
    log = log_with([["one "]])
    log.doubtful = True
    assert delivered(log) is None

    log.told_all(text_bytes=8)
    assert delivered(log) is None
    log.told_all(text_bytes=4)

    found = delivered(log)
    assert found is not None
    assert found.text == "one "
