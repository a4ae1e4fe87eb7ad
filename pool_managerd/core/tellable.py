"""What a message can carry of what an engine said: its text, its token ids, its counts.

JSON may hold half a pair of surrogates and numbers of any size, protobuf may not. An engine that
tells such things is not to be believed there, and not to cost anybody else anything.
"""

import re
from collections.abc import Sequence

TOKEN_ID_MAX = (1 << 32) - 1
PIECE_IDS_MAX = 65_536
"""Token ids of one piece; with more it would outgrow the transport's limit."""

TELLABLE_COUNT_MAX = 1 << 40
"""Counts are told up to here: the orchestrator takes an end with a larger one for malformed."""

TELLABLE_TIME_MS_MAX = 1 << 32
"""Times in ms are told up to here, for the same reason."""

TELLABLE_SLOTS_MAX = 1 << 16
"""Slots of one pool are told up to here: the orchestrator refuses a snapshot with more."""

BYTES_MAX = 1 << 50
"""Bytes of one memory are told up to here: the orchestrator refuses a snapshot with more."""

TELLABLE_TEXT_CHARS_MAX = 256
"""Characters of a name, version or digest that an engine tells, for the same reason."""


_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shown_text(text: str) -> str:
    """The text as it may be shown on a terminal: without colours, titles and control characters.

    Source: ECMA-48, 5.4 and 8.3.89, for the sequences that begin with ESC.
    """
    if text.isprintable():
        return text
    return _CONTROL.sub(" ", _SEQUENCE.sub("", text))


def plain_text(text: str) -> str:
    """The text with a question mark for each half of a pair of surrogates that stands alone."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def are_token_ids(ids: Sequence[int]) -> bool:
    """Whether all of them, at least one, can be ids of tokens of one piece. O(ids)."""
    return len(ids) <= PIECE_IDS_MAX and min(ids) >= 0 and max(ids) <= TOKEN_ID_MAX


def count_or_none(count: int | None) -> int | None:
    """A count that can be; None for any other."""
    return count if count is not None and 0 <= count <= TELLABLE_COUNT_MAX else None


def time_ms_or_none(time_ms: int | None) -> int | None:
    """A time in ms that can be; None for any other."""
    return time_ms if time_ms is not None and 0 <= time_ms <= TELLABLE_TIME_MS_MAX else None
