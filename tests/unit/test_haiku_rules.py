"""What counts as a haiku of a minute. ORCH-3051."""

import pytest

from tests.acceptance.haiku_rules import in_words, problems

FORTY_TWO = "The old clock whispers\nforty-two grains of silence\nfall into the pond"


@pytest.mark.parametrize(
    ("minute", "words"),
    [(0, "zero"), (7, "seven"), (13, "thirteen"), (20, "twenty"), (42, "forty-two")],
)
def test_minutes_in_words(minute: int, words: str) -> None:
    """As a person says them."""
    assert in_words(minute) == words


def test_every_minute_has_words_of_its_own() -> None:
    """Sixty of them, and no more."""
    assert len({in_words(minute) for minute in range(60)}) == 60
    for minute in (-1, 60):
        with pytest.raises(ValueError, match="no minute"):
            in_words(minute)


@pytest.mark.parametrize(
    "text",
    [
        FORTY_TWO,
        FORTY_TWO.replace("forty-two", "Forty two"),
        f"\n  {FORTY_TWO}\n\n",
        f"<think>two lines?\nno, three</think>\n{FORTY_TWO}",
        f"```\n{FORTY_TWO}\n```",
    ],
)
def test_a_haiku_of_this_minute(text: str) -> None:
    """Three lines with the word, however it is written or wrapped."""
    assert problems(text, 42) == []


@pytest.mark.parametrize(
    ("text", "minute", "wrong"),
    [
        (FORTY_TWO, 2, "does not say 'two'"),
        (FORTY_TWO, 40, "does not say 'forty'"),
        (FORTY_TWO, 43, "does not say 'forty-three'"),
        (FORTY_TWO.replace("forty-two", "someone said"), 1, "does not say 'one'"),
        (FORTY_TWO.replace("forty-two", "sixteen"), 6, "does not say 'six'"),
        (FORTY_TWO.replace("\n", " "), 42, "1 lines"),
        (FORTY_TWO + "\nand one line more", 42, "4 lines"),
        (f"<think>{FORTY_TWO}</think>", 42, "0 lines"),
        ("", 42, "0 lines"),
    ],
)
def test_what_is_none(text: str, minute: int, wrong: str) -> None:
    """Another minute, a part of a word, too few or too many lines, thoughts alone."""
    assert any(wrong in problem for problem in problems(text, minute))
