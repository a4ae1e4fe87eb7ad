"""Messages of any type, made from its descriptor: what a client may send, sense or nonsense.

The packages on PyPI that do this (hypothesis-pb, hypothesis-protobuf) have not been kept for years
and know neither `optional` nor oneofs.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

DEPTH_MAX = 4
ENTRIES_MAX = 3
LONG_TEXT = 5_000

Known = Mapping[str, tuple[object, ...]]

_F = FieldDescriptor
_INTEGERS = {
    _F.TYPE_INT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    _F.TYPE_UINT32: (0, 2**32 - 1),
    _F.TYPE_FIXED32: (0, 2**32 - 1),
    _F.TYPE_INT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SINT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _F.TYPE_UINT64: (0, 2**64 - 1),
    _F.TYPE_FIXED64: (0, 2**64 - 1),
}
_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            "\0",
            "../../etc/passwd",
            "%s%n{0}",
            "\u202e\ud7ff\U0010ffff",
            "a" * LONG_TEXT,
            "é" * LONG_TEXT,
            "'; DROP TABLE job; --",
            "-1",
            "NaN",
        ]
    ),
)
_FLOATS = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 3e38, -1.0, 1e-45]),
)

_OTHERS: dict[int, st.SearchStrategy[Any]] = {
    _F.TYPE_FLOAT: _FLOATS,
    _F.TYPE_DOUBLE: _FLOATS,
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_STRING: _TEXTS,
    _F.TYPE_BYTES: st.one_of(st.binary(max_size=64), st.just(b"\0" * LONG_TEXT)),
}


def messages(kind: type[Message], known: Known, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type: up to three fields with anything in them, and those that are `known`.

    `known` has values by the name of a field that mean something to the receiver, nothing for a
    message that is to be there: nearly all messages have them, so that what lies behind the first
    checks is reached.
    """
    descriptor: Descriptor = kind.DESCRIPTOR
    fields = {field.name: _field(field, known, depth) for field in descriptor.fields}
    others = st.lists(st.sampled_from(sorted(fields)), unique=True, min_size=0, max_size=3)
    names = st.one_of(st.just([]), others.map(lambda found: found[:1]), others)
    wanted = [name for name in fields if name in known]

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = kind()
        drawn = draw(names) if fields else []
        missing = draw(st.integers(0, 19)) if wanted else 0
        # Of a oneof the last one stays; the order says which of those that are known.
        for name in [*drawn, *([] if missing == 1 else draw(st.permutations(wanted)))]:
            _put(message, descriptor.fields_by_name[name], draw(fields[name]))
        return message

    return build()


def encoded(kind: type[Message], known: Known) -> st.SearchStrategy[bytes]:
    """What is sent as a message of a type.

    Mostly one, also with fields that nobody knows, or cut off; now and then any bytes.
    """
    sound = messages(kind, known).map(lambda message: message.SerializeToString())
    extended = st.tuples(sound, st.sampled_from(_UNKNOWN_FIELDS)).map(b"".join)
    cut = st.tuples(sound, st.integers(0, 40)).map(lambda it: it[0][: it[1]])
    strange = st.one_of(extended, cut, st.binary(max_size=64))
    return st.integers(0, 7).flatmap(lambda number: strange if number == 1 else sound)


def nested(depth: int) -> bytes:
    """A google.protobuf.Value of lists within lists, encoded; deeper than decoders allow."""
    data = b"\x08\x00"
    for _ in range(depth):
        inner = b"\x0a" + varint(len(data)) + data
        data = b"\x32" + varint(len(inner)) + inner
    return data


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


# Field 2,000: a number, a text, a group without its end; field 0; a length beyond the end.
_UNKNOWN_FIELDS = (
    b"\x80\x7d" + b"\xff" * 9 + b"\x01",
    b"\x82\x7d\x03abc",
    b"\x83\x7d",
    b"\x00\x01",
    b"\x82\x7d\xff\xff\xff\xff\x07",
)


def _field(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name
        entries = (_single(inner["key"], known, depth), _single(inner["value"], known, depth))
        return st.dictionaries(*entries, max_size=ENTRIES_MAX)
    single = _single(field, known, depth)
    if not field.is_repeated:
        return single
    few = st.lists(single, max_size=ENTRIES_MAX)
    if field.name in known:
        # Columns that run in parallel are of one length then.
        return st.integers(0, 19).flatmap(lambda n: few if n == 1 else single.map(lambda it: [it]))
    many = single.map(lambda value: [value] * 300)
    return few if depth else st.integers(0, 9).flatmap(lambda n: many if n == 1 else few)


def _single(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    anything = _anything(field, known, depth)
    if not known.get(field.name):
        return anything
    usual = st.sampled_from(known[field.name])
    return st.integers(0, 9).flatmap(lambda number: anything if number == 1 else usual)


def _anything(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        kind = message_factory.GetMessageClass(field.message_type)
        if depth >= DEPTH_MAX:
            return st.just(kind())
        return st.deferred(lambda: messages(kind, known, depth + 1))
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        few = st.integers(max(low, -2), 20)
        return st.one_of(few, st.integers(low, high), st.sampled_from([low, high]))
    if field.type == _F.TYPE_ENUM:
        numbers = [value.number for value in field.enum_type.values]
        return st.one_of(st.sampled_from(numbers), st.sampled_from([99, -1, 2**31 - 1]))
    return _OTHERS[field.type]


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Sets a field; of a oneof the last one that is set stays."""
    if field.is_repeated:
        if field.message_type is None:
            getattr(message, field.name).extend(value)
        elif isinstance(value, dict):
            _put_map(message, field, value)
        else:
            getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _put_map(message: Message, field: FieldDescriptor, value: dict[Any, Any]) -> None:
    target = getattr(message, field.name)
    for key, entry in value.items():
        if isinstance(entry, Message):
            target[key].CopyFrom(entry)
        else:
            target[key] = entry
