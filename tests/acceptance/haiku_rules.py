"""What makes a haiku of this minute: a word that no model can know beforehand, and three lines."""

import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty"}
LINES = 3


def in_words(minute: int) -> str:
    """A minute of the hour: "seven", "forty", "forty-two".

    Raises:
        ValueError: when it is none.
    """
    if not 0 <= minute <= 59:
        raise ValueError(f"{minute} is no minute of an hour")
    if minute < len(_ONES):
        return _ONES[minute]
    tens, ones = _TENS[minute // 10], minute % 10
    return f"{tens}-{_ONES[ones]}" if ones else tens


def problems(text: str, minute: int) -> list[str]:
    """What keeps a text from being a haiku of that minute; nothing when it is one.

    What a model thinks before (`<think>`) is not looked at, nor are the marks of a code block.
    "forty two" counts as "forty-two"; "forty-two" is no "two", and no "forty".
    """
    said = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    found = [] if len(lines) == LINES else [f"it has {len(lines)} lines, not {LINES}"]
    wanted = in_words(minute)
    if wanted not in _numbers(" ".join(lines)):
        found.append(f"it does not say {wanted!r}")
    return found


def _numbers(text: str) -> set[str]:
    """All numbers below sixty that a text says in words, each as long as it is."""
    words = re.findall(r"[a-z]+", text.lower())
    found: set[str] = set()
    position = 0
    while position < len(words):
        word, after = words[position], words[position + 1 : position + 2]
        if word in _TENS.values() and after and after[0] in _ONES[1:10]:
            found.add(f"{word}-{after[0]}")
            position += 1
        elif word in _ONES or word in _TENS.values():
            found.add(word)
        position += 1
    return found
