"""Encoded ExchangeResponses, made without a message object per event or batch of tokens.

An entry of the relay is `tag, length, JobEvent`. Of a `tokens` event everything after its length is
`tag, length, chunk`, which is an entry of ExchangeTokens.chunks as it stands: both fields have the
same number, so output is passed on by cutting a head off.
Source: protobuf.dev/programming-guides/encoding.
"""

from typing import Final

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.wire.varint import encode_varint

_VARINT: Final = 0
_LEN: Final = 2
_BYTE: Final = 0x80


def _tag(number: int, wire_type: int) -> bytes:
    return bytes([number << 3 | wire_type])


_RESULTS: Final = _tag(pb.ExchangeResponse.RESULTS_FIELD_NUMBER, _LEN)
_TOKENS: Final = _tag(pb.ExchangeResponse.TOKENS_FIELD_NUMBER, _LEN)
_EVENTS: Final = _tag(pb.ExchangeResponse.EVENTS_FIELD_NUMBER, _LEN)
_BEGUN: Final = _tag(pb.ExchangeResponse.BEGUN_FIELD_NUMBER, _LEN)
_BROKEN: Final = _tag(pb.ExchangeResponse.BROKEN_FIELD_NUMBER, _LEN)
_HANDLES: Final = _tag(pb.ExchangeTokens.HANDLES_FIELD_NUMBER, _LEN)
_INDEXES: Final = _tag(pb.ExchangeTokens.FIRST_INDEXES_FIELD_NUMBER, _LEN)
_HANDLE: Final = _tag(pb.ExchangeJobEvent.HANDLE_FIELD_NUMBER, _VARINT)
_EVENT: Final = _tag(pb.ExchangeJobEvent.EVENT_FIELD_NUMBER, _LEN)
# Most jobs have no more pieces than this, and looking a number up takes a third of encoding it.
_SHORTS: Final = 4_096
_SHORT: Final = [encode_varint(number) for number in range(_SHORTS)]
assert pb.ExchangeTokens.CHUNKS_FIELD_NUMBER == events_pb2.JobEvent.TOKENS_FIELD_NUMBER


class ResponseBuilder:
    """Gathers one ExchangeResponse. `size` is about its length in bytes.

    Whoever adds keeps each job's own order: within a message begun, tokens, events, broken.
    """

    __slots__ = ("_chunks", "_handles", "_indexes", "_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._handles: list[bytes] = []
        self._indexes: list[bytes] = []
        self._chunks: list[bytes] = []
        self.size = 0

    def result(self, result: pb.ExchangeResult) -> None:
        """Adds the answer to a request."""
        self._part(_RESULTS, result.SerializeToString())

    def begun(self, key: bytes, entry: bytes) -> None:
        """Adds an event that comes before the output of this message. `key` is `encode_handle`."""
        self._event(_BEGUN, key, entry)

    def event(self, key: bytes, entry: bytes) -> None:
        """Adds an event that comes after the output of this message."""
        self._event(_EVENTS, key, entry)

    def text(self, key: bytes, first_index: int, entry: bytes) -> None:
        """Adds output: an entry of a `tokens` event."""
        self._handles.append(key)
        self._indexes.append(
            _SHORT[first_index] if first_index < _SHORTS else encode_varint(first_index)
        )
        chunk = entry[2:] if entry[1] < _BYTE else entry[_head_bytes(entry) :]
        self._chunks.append(chunk)
        self.size += len(chunk)

    def broken(self, broken: pb.ExchangeBroken) -> None:
        """Adds the end of a subscription that has no outcome."""
        self._part(_BROKEN, broken.SerializeToString())

    def encode(self) -> bytes:
        """The whole message; empty when nothing was added."""
        if self._chunks:
            handles, indexes = b"".join(self._handles), b"".join(self._indexes)
            tokens = b"".join(
                (
                    _HANDLES,
                    encode_varint(len(handles)),
                    handles,
                    _INDEXES,
                    encode_varint(len(indexes)),
                    indexes,
                    *self._chunks,
                )
            )
            self._parts += (_TOKENS, encode_varint(len(tokens)), tokens)
        return b"".join(self._parts)

    def _event(self, tag: bytes, key: bytes, entry: bytes) -> None:
        self._part(tag, b"".join((_HANDLE, key, _EVENT, entry[1:])))

    def _part(self, tag: bytes, body: bytes) -> None:
        self._parts += (tag, encode_varint(len(body)), body)
        self.size += len(body)


def encode_handle(handle: int) -> bytes:
    """A handle as the columns have it."""
    return encode_varint(handle)


def _head_bytes(entry: bytes) -> int:
    """Bytes of an entry's tag and length."""
    at = 1
    while entry[at] >= _BYTE:
        at += 1
    return at + 1
