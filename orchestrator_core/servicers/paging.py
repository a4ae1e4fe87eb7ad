"""Pages of lists that fit into one message, however much clients said of what is listed."""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

# The rest of the 4 MiB is for what stands around them.
PAGE_BYTES_MAX = 3 << 20
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
