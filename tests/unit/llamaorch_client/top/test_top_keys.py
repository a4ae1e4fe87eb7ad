"""Keys out of a terminal's bytes, however these are cut."""

from hypothesis import given
from hypothesis import strategies as st

from llamaorch_client.cli.top.keys import SEQUENCE_CHARS_MAX, KeyReader

SENT = {
    "q": b"q",
    "enter": b"\r",
    "up": b"\x1b[A",
    "down": b"\x1bOB",
    "page-down": b"\x1b[6~",
    "é": "é".encode(),
}


@given(st.lists(st.sampled_from(sorted(SENT)), max_size=20))
def test_keys_that_come_in_one_piece_are_told_apart(keys: list[str]) -> None:
    """A burst of keys, as from a paste or a held key, is every one of them."""
    reader = KeyReader()

    found = reader.feed(b"".join(SENT[key] for key in keys))

    assert found == keys
    assert not reader.waiting


@given(st.lists(st.sampled_from(["q", "up", "down", "page-down"]), min_size=1), st.data())
def test_a_sequence_may_be_cut_anywhere(keys: list[str], data: st.DataObject) -> None:
    """Whether a connection delivers a key in one piece or byte by byte makes no difference."""
    sent = b"".join(SENT[key] for key in keys)
    at = data.draw(st.integers(0, len(sent)))
    reader = KeyReader()

    found = [*reader.feed(sent[:at]), *reader.feed(sent[at:])]

    assert found == keys


def test_escape_is_a_key_once_nothing_follows() -> None:
    """Until then it may be the beginning of an arrow."""
    reader = KeyReader()

    early = reader.feed(b"\x1b")

    assert (early, reader.waiting) == ([], True)
    assert reader.flush() == ["escape"]
    assert (reader.flush(), reader.waiting) == ([], False)


def test_escape_before_another_key_is_both_and_unknown_sequences_are_nothing() -> None:
    """Alt with a key comes as that; a key that means nothing here is passed over."""
    reader = KeyReader()

    assert reader.feed(b"\x1bq") == ["escape", "q"]
    assert reader.feed(b"\x1b[15~s") == ["s"]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_garbage_is_bounded_and_harmless(parts: list[bytes]) -> None:
    """Whatever arrives, little is kept and a key that follows the silence is understood."""
    reader = KeyReader()

    for part in parts:
        reader.feed(part)
        assert len(reader._rest) <= SEQUENCE_CHARS_MAX

    reader.flush()
    assert reader.feed(b"q") == ["q"]
