"""A span's bytes, put together directly: several times as fast as by protobuf objects.

Source: opentelemetry/proto/trace/v1/trace.proto, common/v1/common.proto; protobuf.dev/
programming-guides/encoding.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from orchestrator_core.wire.varint import encode_varint

KEYS_MAX = 256
# What stands before a value depends on its key and length alone.
HEADS_MAX = 4_096
# Bits of a span's `flags`: the second is told, and the parent is of another process.
_IS_REMOTE_TOLD, _IS_REMOTE = 0x100, 0x200
_MASK_64 = (1 << 64) - 1
# Fields 7 and 8, both fixed64: start and end.
_TIMES: Final = struct.Struct("<BQBQ")
_DOUBLE: Final = struct.Struct("<d")
_FLAGS: Final = struct.Struct("<I")
_FLAGS_AS: Final = {
    flags: b"\x85\x01" + _FLAGS.pack(flags)
    for flags in (_IS_REMOTE_TOLD, _IS_REMOTE_TOLD | _IS_REMOTE)
}


def encode_span(span: ReadableSpan) -> bytes:
    """An entry of `ScopeSpans.spans` with its head: a span that has ended. O(bytes).

    It must have what `Tracing` gives it: no events, no tracestate, links without attributes.
    """
    return _field(b"\x12", _span(span))


def _span(span: ReadableSpan) -> bytes:
    context, parent = span.get_span_context(), span.parent
    assert context is not None, "every span has a context"
    flags = _IS_REMOTE_TOLD | (_IS_REMOTE if parent is not None and parent.is_remote else 0)
    parts = [
        b"\x0a\x10",
        context.trace_id.to_bytes(16, "big"),
        b"\x12\x08",
        context.span_id.to_bytes(8, "big"),
        b"" if parent is None else b"\x22\x08" + parent.span_id.to_bytes(8, "big"),
        _kind(span.name, span.kind),
        _TIMES.pack(0x39, span.start_time or 0, 0x41, span.end_time or 0),
    ]
    for key, value in (span.attributes or {}).items():
        if type(value) is str:
            text = value.encode()
            parts += (_text_head(key, len(text)), text)
        elif type(value) is int:
            number = encode_varint(value & _MASK_64)
            parts += (_number_head(key, len(number)), number)
        else:
            parts.append(_field(b"\x4a", _key(key) + _field(b"\x12", _value(value))))
    for link in span.links or ():
        linked = link.context
        remote = _IS_REMOTE_TOLD | (_IS_REMOTE if linked.is_remote else 0)
        told = b"\x0a\x10" + linked.trace_id.to_bytes(16, "big")
        told += b"\x12\x08" + linked.span_id.to_bytes(8, "big") + b"\x35" + _FLAGS.pack(remote)
        parts.append(_field(b"\x6a", told))
    status = span.status
    parts.append(_status(status.status_code, status.description))
    parts.append(_FLAGS_AS[flags])
    return b"".join(parts)


def _value(value: object) -> bytes:
    if isinstance(value, str):
        return _text(b"\x0a", value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + encode_varint(value & _MASK_64)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE.pack(value)
    if isinstance(value, Sequence):
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(item)) for item in value]))
    raise TypeError(f"no attribute of a span: {value!r}")


@lru_cache(KEYS_MAX)
def _key(key: str) -> bytes:
    return _text(b"\x0a", key)


@lru_cache(KEYS_MAX)
def _kind(name: str, kind: SpanKind) -> bytes:
    return _text(b"\x2a", name) + b"\x30" + encode_varint(kind.value + 1)


@lru_cache(HEADS_MAX)
def _text_head(key: str, size: int) -> bytes:
    """All of an attribute but its text of `size` bytes, which follows."""
    return _head(key, b"\x0a" + encode_varint(size), size)


@lru_cache(HEADS_MAX)
def _number_head(key: str, size: int) -> bytes:
    """All of an attribute but its number of `size` bytes, which follows."""
    return _head(key, b"\x18", size)


def _head(key: str, tag: bytes, size: int) -> bytes:
    head = _key(key) + b"\x12" + encode_varint(len(tag) + size) + tag
    return b"\x4a" + encode_varint(len(head) + size) + head


@lru_cache(KEYS_MAX)
def _status(code: StatusCode, description: str | None) -> bytes:
    told = _text(b"\x12", description) if description else b""
    return _field(b"\x7a", told + (b"\x18" + encode_varint(code.value) if code.value else b""))


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode())


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + encode_varint(len(body)) + body
