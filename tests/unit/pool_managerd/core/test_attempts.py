"""The token store's log against a plain string and a plain list."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.attempts import (
    PIECE_BYTES_MAX,
    Appended,
    AttemptKey,
    AttemptLog,
    Boundary,
    EndReason,
    ErrorKind,
    Prefix,
    Terminal,
)
from pool_managerd.core.logprobs import TokenLogprob

texts = st.lists(st.text(max_size=6), max_size=30)
UNBOUNDED = 1 << 30


def digest(text: str) -> int:
    """The digest chain's definition, written a second time."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def new_log(verify: Boundary | None = None, prefix: Prefix | None = None) -> AttemptLog:
    """An empty log."""
    return AttemptLog(AttemptKey("j", 1), ("p", "p-1"), verify, prefix)


@given(texts, st.data())
def test_any_reading_equals_the_plain_list(pieces: list[str], data: st.DataObject) -> None:
    """A chunk is a slice of the pieces, with offset and digest of the text before. LO-301."""
    log = new_log()
    for number, piece in enumerate(pieces):
        assert log.append(piece, (number,)) is Appended.KEPT
    first = data.draw(st.integers(0, len(pieces) + 1))
    limit = data.draw(st.integers(1, 40))

    chunk = log.read_from(first, limit, UNBOUNDED)

    if first >= len(pieces):
        assert chunk is None
        return
    assert chunk is not None
    end = first + len(chunk.pieces)
    before = "".join(pieces[:first])
    assert list(chunk.pieces) == pieces[first:end]
    assert chunk.token_ids == tuple(range(first, end))
    assert chunk.text_offset == len(before.encode())
    assert chunk.prefix_digest == digest(before)
    assert chunk.text_bytes == len("".join(pieces[first:end]).encode())
    assert chunk.text_bytes <= limit or len(chunk.pieces) == 1
    if end < len(pieces):
        assert len("".join(pieces[first : end + 1]).encode()) > limit


@given(texts)
def test_totals_equal_the_plain_string(pieces: list[str]) -> None:
    """Bytes, pieces, tokens and digest are those of the whole text."""
    log = new_log()
    for piece in pieces:
        log.append(piece)

    whole = "".join(pieces)
    assert (log.text_bytes, log.next_index) == (len(whole.encode()), len(pieces))
    assert log.digest == digest(whole)
    assert log.tokens_out == len(pieces)


@given(texts, texts, st.data())
def test_a_replay_shows_exactly_what_follows_the_boundary(
    first: list[str], again: list[str], data: st.DataObject
) -> None:
    """Equal text before the boundary is withheld, other text is a mismatch. LO-304."""
    delivered = "".join(first).encode()
    offset = data.draw(st.integers(1, len(delivered))) if delivered else 0
    same = data.draw(st.booleans())
    produced = first if same else again
    boundary = Boundary(offset, _digest_of(delivered[:offset]))
    log = new_log(boundary)

    outcomes = []
    for piece in produced:
        outcomes.append(log.append(piece))
        if outcomes[-1] is Appended.MISMATCH:
            break

    text = "".join(produced).encode()
    equal = text[:offset] == delivered[:offset] and _whole_characters(text, offset)
    if not equal and len(text) >= offset:
        assert outcomes[-1] is Appended.MISMATCH
        return
    assert Appended.MISMATCH not in outcomes
    assert log.visible == (len(text) >= offset)
    shown = log.read_from(log.new_from, UNBOUNDED, UNBOUNDED)
    shown_text = "".join(shown.pieces) if shown else ""
    assert shown_text.encode() == (text[offset:] if log.visible else b"")


def _digest_of(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _whole_characters(text: bytes, offset: int) -> bool:
    return offset == len(text) or (text[offset] & 0xC0) != 0x80 if offset <= len(text) else False


@given(texts, texts, st.integers(0, 30))
def test_a_continuation_goes_on_as_if_it_were_one_log(
    before: list[str], after: list[str], count: int
) -> None:
    """Offsets, indexes, digests and all of the text equal those of one long log."""
    earlier, whole = new_log(), new_log()
    for piece in before:
        earlier.append(piece)
    delivered = "".join(before[:count])
    boundary = Boundary(len(delivered.encode()), digest(delivered))

    prefix = earlier.prefix_at(boundary)

    assert prefix is not None
    log = new_log(prefix=prefix)
    held = (log.held_bytes, log.acked_offset, log.tokens_out)
    for piece in (*prefix.pieces, *after):
        whole.append(piece)
    for piece in after:
        log.append(piece)
    assert (held[1:], held[0] > 0) == ((boundary.text_offset, 0), bool(prefix.pieces))
    assert log.read_from(0, UNBOUNDED, UNBOUNDED) == whole.read_from(0, UNBOUNDED, UNBOUNDED)
    assert log.held_bytes == whole.held_bytes
    assert (log.next_index, log.text_bytes, log.digest) == (
        whole.next_index,
        whole.text_bytes,
        whole.digest,
    )
    assert (log.first_index, log.new_from) == (0, len(prefix.pieces))


@pytest.mark.parametrize(
    "boundary", [Boundary(2, 0), Boundary(1, digest("a")), Boundary(9, digest("abcd"))]
)
def test_a_prefix_that_is_not_held_is_not_continued(boundary: Boundary) -> None:
    """Another digest, a place inside a piece, and a place beyond the end are all refused."""
    log = new_log()
    log.append("ab")
    log.append("cd")

    assert log.prefix_at(boundary) is None


@given(texts, st.integers(0, 60))
def test_only_acknowledged_pieces_are_evicted(pieces: list[str], acked: int) -> None:
    """Eviction forgets whole pieces at the front, and nothing that was not acknowledged. LO-302."""
    log = new_log()
    for piece in pieces:
        log.append(piece)
    held = log.held_bytes
    log.ack(acked)

    freed = log.evict_acked(1 << 40)

    gone = log.first_index
    assert len("".join(pieces[:gone]).encode()) <= acked
    assert log.held_bytes == held - freed
    rest = log.read_from(0, UNBOUNDED, UNBOUNDED)
    assert list(rest.pieces if rest else ()) == pieces[gone:]
    assert log.digest == digest("".join(pieces))
    if gone < len(pieces) and pieces[gone]:
        assert len("".join(pieces[: gone + 1]).encode()) > acked


@given(
    st.lists(st.tuples(st.text(max_size=6), st.integers(0, 2)), max_size=30),
    st.integers(0, 40),
    st.integers(0, 31),
    st.integers(1, 3_000),
)
def test_log_probabilities_stay_with_their_pieces(
    pieces: list[tuple[str, int]], acked: int, first: int, cost_bytes_max: int
) -> None:
    """A reading has those of its pieces, they are paid for, and they go when the pieces go."""
    log, told = new_log(), []
    for number, (text, count) in enumerate(pieces):
        top = ((b"x" * count, -0.5),)
        told.append(tuple(TokenLogprob(b"t", -float(number), top) for _ in range(count)))
        log.append(text, (), told[-1])
    log.ack(acked)
    held = log.held_bytes
    freed = log.evict_acked(first)

    chunk = log.read_from(first, UNBOUNDED, cost_bytes_max)

    assert log.held_bytes == held - freed
    if chunk is None:
        return
    end = chunk.first_index + len(chunk.pieces)
    expected = told[chunk.first_index : end]
    assert chunk.logprobs == (tuple(expected) if any(expected) else ())
    assert chunk.cost_bytes <= cost_bytes_max or len(chunk.pieces) == 1
    assert chunk.cost_bytes >= sum(len(tokens) * 100 for tokens in expected)


def test_a_log_that_was_emptied_costs_nothing() -> None:
    """What was charged for log probabilities is given back."""
    log = new_log()
    log.append("a", (), (TokenLogprob(b"a", -1.0),))
    log.ack(1)

    log.evict_acked(1 << 40)

    assert log.held_bytes == 0


def test_a_replay_tells_log_probabilities_of_what_is_new() -> None:
    """Of a piece that crosses the boundary too: they are those of its whole."""
    log = new_log(Boundary(1, digest("a")))
    token = (TokenLogprob(b"ab", -1.0),)

    log.append("ab", (), token)

    chunk = log.read_from(0, UNBOUNDED, UNBOUNDED)
    assert chunk is not None
    assert (chunk.pieces[-1], chunk.logprobs[-1]) == ("b", token)


def test_a_long_piece_is_split_between_characters() -> None:
    """No piece outgrows a message, whatever an engine calls one piece."""
    log = new_log()
    text = "ö" * PIECE_BYTES_MAX

    log.append(text, (1, 2))

    chunk = log.read_from(0, UNBOUNDED, UNBOUNDED)
    assert chunk is not None
    assert "".join(chunk.pieces) == text
    assert max(len(piece.encode()) for piece in chunk.pieces) <= PIECE_BYTES_MAX
    assert chunk.token_ids == (1, 2)


def test_the_first_terminal_record_stands() -> None:
    """An attempt ends once. ORCH-3026."""
    log = new_log()
    log.end(Terminal(EndReason.EOS))

    log.end(Terminal(EndReason.CANCELLED))

    assert log.terminal == Terminal(EndReason.EOS)
    with pytest.raises(AssertionError):
        log.append("more")
    assert len(ErrorKind) == 9
