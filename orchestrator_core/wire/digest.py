"""The digest that tells a repeated request from another one under the same id. ORCH-3024."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from llamaorch.orchestrator.v1 import job_pb2

# The key under which requests are compared is not part of what is compared.
_EXCLUDED = frozenset({"request_id"})
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def spec_digest(spec: job_pb2.JobSpec) -> str:
    """Returns the SHA-256, in hex, of the fields that the client set, as canonical JSON.

    Never of protobuf bytes: those may differ between languages for equal messages. An `optional`
    field set to its default differs from one left out; the order of a map does not count; fields
    unknown to this server do not count. `job_id` counts only when the client chose it, so `spec`
    must be as the client sent it. O(size of the message).
    """
    fields = _fields(spec)
    kept = {name: value for name, value in fields.items() if name not in _EXCLUDED}
    return hashlib.sha256(_CANONICAL.encode(kept).encode()).hexdigest()


def _fields(message: Message) -> dict[str, object]:
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> object:
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if isinstance(value, Message):
        return _fields(value)
    if isinstance(value, Mapping):
        # Keys of maps are texts in this API, so sorting them is total.
        return {key: _plain(entry) for key, entry in value.items()}
    return [_fields(entry) for entry in value]


def _plain(entry: Any) -> object:
    return _fields(entry) if isinstance(entry, Message) else entry
