"""Pages of lists that fit into one message, however much clients said of what is listed."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError

# The rest of the 4 MiB is for what stands around them.
PAGE_BYTES_MAX = 3 << 20
# Tokens are the name that a page ended with: no pool, session or model has a longer one.
NAME_CHARS_MAX = 256
# Tag and length of each.
_AROUND_BYTES = 8

_M = TypeVar("_M", bound=Message)


def fitting(messages: Iterable[_M], bytes_max: int = PAGE_BYTES_MAX) -> list[_M]:
    """The first messages that have room in an answer, or a part of it; at least one, if any."""
    found: list[_M] = []
    size_bytes = 0
    for message in messages:
        size_bytes += message.ByteSize() + _AROUND_BYTES
        if found and size_bytes > bytes_max:
            break
        found.append(message)
    return found


def parts(messages: Sequence[_M], count_max: int) -> Iterator[list[_M]]:
    """All messages in order, in lists of at most `count_max` that each fit into one message."""
    at = 0
    while at < len(messages):
        part = fitting(messages[at : at + count_max])
        at += len(part)
        yield part


def name_after(page_token: str) -> str:
    """The name after which a page begins, where lists are sorted by name; empty for the first.

    Raises:
        RefusalError: INVALID_PARAMS for what is none.
    """
    if len(page_token) > NAME_CHARS_MAX:
        raise foreign_token()
    return page_token


def foreign_token() -> RefusalError:
    """INVALID_PARAMS for a page token that no answer of this server had."""
    wrong = FieldViolation("page_token", "take it from the last answer, or leave it empty")
    text = "page_token is not one of this server's"
    return RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=(wrong,)))
