"""Hypothesis strategies for protobuf messages: any value that a client could send."""

from typing import Any, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal

M = TypeVar("M", bound=Message)

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    # Enums are open: any 32-bit number may arrive.
    FieldDescriptor.CPPTYPE_ENUM: (-2, 20),
}
_TEXT = st.one_of(st.text(max_size=6), st.sampled_from(["seed", "8.6", "a" * 300]))


def messages(kind: type[M], depth: int = 4) -> st.SearchStrategy[M]:
    """Messages with any subset of fields, nested at most `depth` deep."""
    fields = {
        field.name: st.none() | _values(field, depth)
        for field in kind.DESCRIPTOR.fields
        if field.message_type is None or depth > 0
    }

    def build(values: dict[str, Any]) -> M:
        message = kind()
        for name, value in values.items():
            if value is not None:
                _set(message, kind.DESCRIPTOR.fields_by_name[name], value)
        return message

    return st.fixed_dictionaries(fields).map(build)


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    single = _single(field, depth)
    if _is_map(field):
        entry = field.message_type.fields_by_name
        return st.dictionaries(
            _single(entry["key"], depth), _single(entry["value"], depth), max_size=3
        )
    return st.lists(single, max_size=3) if field.is_repeated else single


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return st.deferred(lambda: messages(field.message_type._concrete_class, depth - 1))
    if field.cpp_type in _INTEGERS:
        low, high = _INTEGERS[field.cpp_type]
        return st.sampled_from([0, 1, low, high]) | st.integers(low, high)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=6) if field.type == FieldDescriptor.TYPE_BYTES else _TEXT
    return st.floats(width=64) | st.sampled_from([0.0, 1.0, 0.5])


def _is_map(field: FieldDescriptor) -> bool:
    entry: Descriptor | None = field.message_type
    return entry is not None and entry.GetOptions().map_entry


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    target = getattr(message, field.name)
    if _is_map(field):
        for key, entry in value.items():
            if isinstance(entry, Message):
                target[key].CopyFrom(entry)
            else:
                target[key] = entry
    elif field.is_repeated:
        target.extend(value)
    elif field.message_type is not None:
        target.CopyFrom(value)
        target.SetInParent()
    else:
        setattr(message, field.name, value)


def deep_struct(depth: int) -> struct_pb2.Struct:
    """Engine options nested `depth` levels, built without the parser's own limit."""
    top = struct_pb2.Struct()
    inner = top
    for _ in range(depth):
        inner = inner.fields["x"].struct_value
    inner.fields["x"].number_value = 1
    return top


def refusals(text_max: int = 12) -> st.SearchStrategy[Refusal]:
    """Any refusal, with texts of at most `text_max` characters."""
    text = st.text(max_size=text_max)
    shortfall = st.builds(Shortfall, st.sampled_from(ExclusionReason), text, text)
    exclusion = st.builds(Exclusion, text, st.lists(shortfall, max_size=3).map(tuple))
    return st.builds(
        Refusal,
        reason=st.sampled_from(Reason),
        message=text,
        retry_after_ms=st.none() | st.integers(-5, 10**9),
        policy_label=text,
        engine=text,
        pool_id=text,
        resource=text,
        metadata=st.dictionaries(text, text, max_size=5),
        violations=st.lists(st.builds(FieldViolation, text, text), max_size=4).map(tuple),
        shortfalls=st.lists(exclusion, max_size=4).map(tuple),
    )
