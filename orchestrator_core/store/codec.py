"""Records as text columns: JSON of the core's dataclasses, the job's payload beside it as bytes.

`FORMAT_VERSION` stands in every row. A field that is new in a dataclass needs a default, so that
older rows still load; anything else needs a new version and code that reads the old one. A record
begins with a checksum, as SQLite keeps none of what is in the database: a bit that flips on the
disk must not become another prompt or another outcome. It covers the row's `place` too: its job id
and its number of writing. An accept goes on with the checksum of its payload, which is deleted when
the job ends; in version 2 one checksum covered both, so that it tells nothing once the payload is
gone. Version 1 had none.
"""

import zlib
from dataclasses import fields, replace
from operator import attrgetter
from typing import Generic, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError

from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.store.artifact import ArtifactRecord

FORMAT_VERSION = 3
_JOINT_VERSION = 2
_UNCHECKED_VERSION = 1
_SUM_CHARS = 8

_T = TypeVar("_T")

# Accepts are written by msgspec, in a third of the time: they are most of what is written, and the
# event loop waits for the interpreter meanwhile.
_ENCODER = msgspec.json.Encoder()
_SPEC_NAMES = tuple(f.name for f in fields(JobSpec) if f.name != "payload")
_spec_values = attrgetter(*_SPEC_NAMES)
_ACCEPT_NAMES = tuple(f.name for f in fields(AcceptRecord) if f.name != "spec")
_accept_values = attrgetter(*_ACCEPT_NAMES)

_ACCEPT = TypeAdapter(AcceptRecord)


class RecordFormatError(ValueError):
    """A stored record that this version cannot read."""


def place(name: str, within: int | str) -> str:
    """What a record's checksum covers of its row."""
    return f"{name} {within} "


def encode_accept(record: AcceptRecord, place: str) -> tuple[str, bytes]:
    """Returns the record without its payload, and the payload."""
    spec, payload = record.spec, record.spec.payload
    told = dict(zip(_ACCEPT_NAMES, _accept_values(record), strict=True))
    told["spec"] = dict(zip(_SPEC_NAMES, _spec_values(spec), strict=True))
    return _summed(place, _sum(payload).encode() + _ENCODER.encode(told)), payload


def decode_accept(version: int, place: str, text: str, payload: bytes | None) -> AcceptRecord:
    """Reads what `encode_accept` wrote; without a payload, of which the record then has none.

    Raises `RecordFormatError`.
    """
    if payload is not None and not isinstance(payload, bytes):
        raise RecordFormatError("damaged: the payload is no bytes")
    if version == _JOINT_VERSION:
        body = _body(version, place, text, payload)
    else:
        body = _body(version, place, text)
    if version == FORMAT_VERSION:
        told, body = body[:_SUM_CHARS], body[_SUM_CHARS:]
        if payload is not None and told != _sum(payload):
            raise RecordFormatError("damaged: the checksum of its payload differs")
    record = _parse(_ACCEPT, body)
    return replace(record, spec=replace(record.spec, payload=payload)) if payload else record


def _summed(place: str, text: bytes) -> str:
    return f"{_sum(place.encode(), text)}{text.decode()}"


def _sum(*parts: bytes) -> str:
    number = 0
    for part in parts:
        number = zlib.crc32(part, number)
    return f"{number:0{_SUM_CHARS}x}"


def _body(version: int, place: str, text: str, payload: bytes | None = b"") -> str:
    """The text without its checksum, which is right, or covers a payload that is not known."""
    if version not in (_UNCHECKED_VERSION, _JOINT_VERSION, FORMAT_VERSION):
        raise RecordFormatError(f"format {version}, this version reads {FORMAT_VERSION}")
    if not isinstance(text, str):
        raise RecordFormatError("damaged: the record is no text")
    if version == _UNCHECKED_VERSION:
        return text
    told, body = text[:_SUM_CHARS], text[_SUM_CHARS:]
    if payload is not None and told != _sum(place.encode(), body.encode(), payload):
        raise RecordFormatError("damaged: its checksum differs")
    return body


def _parse(adapter: TypeAdapter[_T], text: str) -> _T:
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        # The text of a ValidationError quotes the input, which may hold what must not be logged.
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:4])
        raise RecordFormatError(f"unreadable: {fields or 'not JSON'}") from None


class Form(Generic[_T]):
    """How records of one kind are written: all but accepts, which have a payload."""

    def __init__(self, adapter: TypeAdapter[_T]) -> None:
        self._adapter = adapter

    def encode(self, record: _T, place: str) -> str:
        """Returns the record as text."""
        return _summed(place, self._adapter.dump_json(record))

    def decode(self, version: int, place: str, text: str) -> _T:
        """Reads what `encode` wrote. Raises `RecordFormatError`."""
        return _parse(self._adapter, _body(version, place, text))


DISPATCH = Form(TypeAdapter(DispatchRecord))
TERMINAL = Form(TypeAdapter(TerminalRecord))
SESSION = Form(TypeAdapter(SessionRecord))
DRAIN = Form(TypeAdapter(PoolDrainRecord))
ARTIFACT = Form(TypeAdapter(ArtifactRecord))
MODEL = Form(TypeAdapter(CatalogRecord))
