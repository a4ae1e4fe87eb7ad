"""The reader against a naive model: all text kept, everything compared."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch_client import IntegrityError, ResumePoint, TokenLogprob, Tokens, reader


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _batch(before: bytes, pieces: list[str]) -> events_pb2.JobEvent:
    return events_pb2.JobEvent(
        tokens=events_pb2.TokenBatch(
            attempt=1,
            text_offset=len(before),
            prefix_digest=_digest(before),
            pieces=pieces,
            token_ids=range(len(pieces)),
        )
    )


def _send(output: reader.OutputReader, first: str, then: str) -> None:
    output.accept(_batch(b"", [first]))
    output.accept(_batch(first.encode(), [then]))


@given(
    text=st.text(max_size=60),
    begins=st.lists(st.integers(0, 70), max_size=20),
    lengths=st.lists(st.integers(0, 20), min_size=20, max_size=20),
)
def test_any_slices_of_one_text_are_joined_or_refused_for_a_gap(
    text: str, begins: list[int], lengths: list[int]
) -> None:
    """LO-301: batches that begin anywhere give the text exactly, or an error exactly for a gap."""
    output = reader.OutputReader(None)
    have = ""
    for begin, length in zip(begins, lengths, strict=False):
        before, new = text[:begin].encode(), text[begin : begin + length]
        if len(before) > len(have.encode()):
            with pytest.raises(IntegrityError, match="missing"):
                output.accept(_batch(before, list(new)))
            return
        event = output.accept(_batch(before, list(new)))
        have = text[: max(len(have), begin + len(new))]
        assert output.text_offset == len(have.encode())
        assert event is None or (isinstance(event, Tokens) and have.endswith(event.text))

    point = output.resume_point()
    assert (point.prefix_digest if point else _digest(b"")) == _digest(have.encode())


@pytest.mark.parametrize("changed_at", [0, 70, 199])
def test_repetitions_are_compared_as_far_back_as_the_tail_goes(
    monkeypatch: pytest.MonkeyPatch, changed_at: int
) -> None:
    """LO-304: a changed byte is seen at once in the tail, and by the next digest before it."""
    monkeypatch.setattr(reader, "TAIL_BYTES", 64)
    text = "".join(chr(97 + index % 26) for index in range(200))
    other = text[:changed_at] + "#" + text[changed_at + 1 :]
    output = reader.OutputReader(None)
    for index, piece in enumerate(text):
        output.accept(_batch(text[:index].encode(), [piece]))

    with pytest.raises(IntegrityError):
        _send(output, other + "new", "x")


def test_the_tail_does_not_grow_with_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's memory is bounded, however long the job."""
    monkeypatch.setattr(reader, "TAIL_BYTES", 64)
    output = reader.OutputReader(ResumePoint(1, "x" * 1000))
    text = b"x" * 1000
    for _ in range(100):
        output.accept(_batch(text, ["0123456789"]))
        text += b"0123456789"

    assert len(output._tail) <= 2 * 64


def test_token_ids_belong_to_untrimmed_batches_only() -> None:
    """Ids cannot be matched to the rest of a batch, because a piece may be several tokens."""
    output = reader.OutputReader(None)

    whole = output.accept(_batch(b"", ["a", "b"]))
    trimmed = output.accept(_batch(b"a", ["b", "c"]))

    assert isinstance(whole, Tokens)
    assert isinstance(trimmed, Tokens)
    assert (whole.token_ids, trimmed.token_ids) == ((0, 1), ())
    assert (trimmed.pieces, trimmed.first_index, trimmed.text_offset) == (("c",), 1, 2)


def test_a_repetition_that_splits_a_character_is_refused() -> None:
    """A piece holds whole characters; a cut inside one cannot be the server's own text."""
    output = reader.OutputReader(ResumePoint(1, "é"))
    output._offset -= 1
    output._tail = bytearray("é".encode()[:1])

    with pytest.raises(IntegrityError, match="splits a character"):
        output.accept(_batch(b"", ["é"]))


def test_a_stream_without_output_resumes_from_the_beginning() -> None:
    """Attempt 0 and offset 0 need no resume point."""
    assert reader.OutputReader(None).resume_point() is None


def test_log_probabilities_stay_with_their_pieces() -> None:
    """Of a batch that was delivered in part, those of what is new; text that is cut shows so."""
    output = reader.OutputReader(None)
    first, second = _batch(b"", ["ab"]), _batch(b"", ["ab", "cd", "ef"])
    for batch, tokens in ((first, [b"ab"]), (second, [b"ab", b"cd", b"\xe2\x82"])):
        for index, token in enumerate(tokens):
            entry = batch.tokens.logprobs.add().tokens.add(token=token, logprob=-1.5 - index)
            entry.top.add(token=b"x", logprob=-0.5)

    told = [output.accept(first), output.accept(second)]

    likely = (TokenLogprob("x", -0.5),)
    assert [event.logprobs for event in told if isinstance(event, Tokens)] == [
        ((TokenLogprob("ab", -1.5, likely),),),
        ((TokenLogprob("cd", -2.5, likely),), (TokenLogprob("\ufffd", -3.5, likely),)),
    ]


def test_log_probabilities_of_a_piece_that_was_begun_are_not_told_twice() -> None:
    """They came with its beginning."""
    output = reader.OutputReader(None)
    output.accept(_batch(b"", ["a"]))
    rest = _batch(b"", ["ab", "c"])
    for token in (b"ab", b"c"):
        rest.tokens.logprobs.add().tokens.add(token=token, logprob=-1)

    event = output.accept(rest)

    assert isinstance(event, Tokens)
    assert (event.pieces, event.logprobs) == (("b", "c"), ((), (TokenLogprob("c", -1.0),)))
