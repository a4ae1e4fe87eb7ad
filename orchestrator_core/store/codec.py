"""Records as text columns: JSON of the core's dataclasses, the job's payload beside it as bytes.

`FORMAT_VERSION` stands in every row. A field that is new in a dataclass needs a default, so that
older rows still load; anything else needs a new version and code that reads the old one. Version 2
begins with a checksum, as SQLite keeps none of what is in the database: a bit that flips on the
disk must not become another prompt or another outcome. It covers the row's `place` too: its job id
and its number of writing.
"""

import zlib
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator_core.core.effects import (
    AcceptRecord,
    DispatchRecord,
    SessionRecord,
    TerminalRecord,
)

FORMAT_VERSION = 2
_UNCHECKED_VERSION = 1
_SUM_CHARS = 8

_T = TypeVar("_T")

_ACCEPT = TypeAdapter(AcceptRecord)
_DISPATCH = TypeAdapter(DispatchRecord)
_TERMINAL = TypeAdapter(TerminalRecord)
_SESSION = TypeAdapter(SessionRecord)


class RecordFormatError(ValueError):
    """A stored record that this version cannot read."""


def encode_accept(record: AcceptRecord, place: str) -> tuple[str, bytes]:
    """Returns the record without its payload, and the payload."""
    text = _ACCEPT.dump_json(record, exclude={"spec": {"payload"}})
    return _summed(place, text, record.spec.payload), record.spec.payload


def decode_accept(version: int, place: str, text: str, payload: bytes) -> AcceptRecord:
    """Reads what `encode_accept` wrote. Raises `RecordFormatError`."""
    if not isinstance(payload, bytes):
        raise RecordFormatError("damaged: the payload is no bytes")
    record = _decode(_ACCEPT, version, _Row(place, text, payload))
    return replace(record, spec=replace(record.spec, payload=payload))


def encode_dispatch(record: DispatchRecord, place: str) -> str:
    """Returns the record as text."""
    return _summed(place, _DISPATCH.dump_json(record))


def decode_dispatch(version: int, place: str, text: str) -> DispatchRecord:
    """Reads what `encode_dispatch` wrote. Raises `RecordFormatError`."""
    return _decode(_DISPATCH, version, _Row(place, text))


def encode_terminal(record: TerminalRecord, place: str) -> str:
    """Returns the record as text."""
    return _summed(place, _TERMINAL.dump_json(record))


def decode_terminal(version: int, place: str, text: str) -> TerminalRecord:
    """Reads what `encode_terminal` wrote. Raises `RecordFormatError`."""
    return _decode(_TERMINAL, version, _Row(place, text))


def encode_session(record: SessionRecord, place: str) -> str:
    """Returns the record as text."""
    return _summed(place, _SESSION.dump_json(record))


def decode_session(version: int, place: str, text: str) -> SessionRecord:
    """Reads what `encode_session` wrote. Raises `RecordFormatError`."""
    return _decode(_SESSION, version, _Row(place, text))


@dataclass(frozen=True, slots=True)
class _Row:
    place: str
    text: str
    payload: bytes = b""


def _summed(place: str, text: bytes, payload: bytes = b"") -> str:
    return f"{_sum(place, text, payload)}{text.decode()}"


def _sum(place: str, text: bytes, payload: bytes) -> str:
    number = 0
    for part in (place.encode(), text, payload):
        number = zlib.crc32(part, number)
    return f"{number:0{_SUM_CHARS}x}"


def _decode(adapter: TypeAdapter[_T], version: int, row: _Row) -> _T:
    if version not in (_UNCHECKED_VERSION, FORMAT_VERSION):
        raise RecordFormatError(f"format {version}, this version reads {FORMAT_VERSION}")
    if not isinstance(row.text, str):
        raise RecordFormatError("damaged: the record is no text")
    text = row.text
    if version == FORMAT_VERSION:
        told, text = text[:_SUM_CHARS], text[_SUM_CHARS:]
        if told != _sum(row.place, text.encode(), row.payload):
            raise RecordFormatError("damaged: its checksum differs")
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        # The text of a ValidationError quotes the input, which may hold what must not be logged.
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:4])
        raise RecordFormatError(f"unreadable: {fields or 'not JSON'}") from None
