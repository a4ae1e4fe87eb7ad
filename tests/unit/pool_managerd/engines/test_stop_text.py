"""Cutting stop sequences off, however the text is divided."""

from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.engines.stop_text import StopText


def passed(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    """Returns what gets through in all, and whether a sequence was met."""
    cut = StopText(stops)
    text = "".join([cut.take(part) for part in parts])
    return text + cut.rest(), cut.met


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Looks at every beginning of the text in turn, as an engine that emits single letters would.

    The longest of the sequences with which it ends is cut off.
    """
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


LETTERS = st.text("ab", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab", max_size=4), max_size=3))
def test_any_division_cuts_at_the_first_sequence(parts: list[str], stops: list[str]) -> None:
    """Where chunks begin and end changes nothing."""
    assert passed(parts, stops) == naive("".join(parts), stops)


def test_only_what_may_become_a_sequence_is_held_back() -> None:
    """Text passes at once, but for the beginning of a sequence."""
    cut = StopText(["END"])

    assert [cut.take(part) for part in ("one E", "x two EN", "d", "EN", "D more")] == [
        "one ", "Ex two ", "ENd", "", "",
    ]  # fmt: skip
    assert cut.met
    assert cut.rest() == ""
