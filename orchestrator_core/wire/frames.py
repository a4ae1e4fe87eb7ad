"""Encoded entries of `StreamTokensResponse.events`: a response is any number of them in a row.

Chunks of output are relayed unopened: a chunk is the bytes of a TokenBatch, and a message field and
a `bytes` field look the same on the wire, so only tags and lengths are written around it.
Source: protobuf.dev/programming-guides/encoding.
"""

from typing import Final

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.wire.varint import encode_varint

_LEN: Final = 2
_EVENTS_TAG: Final = bytes(
    [orchestrator_service_pb2.StreamTokensResponse.EVENTS_FIELD_NUMBER << 3 | _LEN]
)
_TOKENS_TAG: Final = bytes([events_pb2.JobEvent.TOKENS_FIELD_NUMBER << 3 | _LEN])
_SHORT: Final = 126
# Heads of the chunks whose two lengths take one byte each: most of them.
_SHORT_HEADS: Final = tuple(
    _EVENTS_TAG + bytes([size + 2]) + _TOKENS_TAG + bytes([size]) for size in range(_SHORT)
)


def encode_token_event(chunk: bytes) -> bytes:
    """Wraps the bytes of a TokenBatch as the entry of a `tokens` event, without parsing them."""
    if len(chunk) < _SHORT:
        return _SHORT_HEADS[len(chunk)] + chunk
    event_head = _TOKENS_TAG + encode_varint(len(chunk))
    return b"".join((_EVENTS_TAG, encode_varint(len(event_head) + len(chunk)), event_head, chunk))


def encode_event(event: events_pb2.JobEvent) -> bytes:
    """Encodes any event as an entry."""
    body = event.SerializeToString()
    return b"".join((_EVENTS_TAG, encode_varint(len(body)), body))
