"""Records as text columns: JSON of the core's dataclasses, the job's payload beside it as bytes.

`FORMAT_VERSION` stands in every row. A field that is new in a dataclass needs a default, so that
older rows still load; anything else needs a new version and code that reads the old one.
"""

from dataclasses import replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator_core.core.effects import (
    AcceptRecord,
    DispatchRecord,
    SessionRecord,
    TerminalRecord,
)

FORMAT_VERSION = 1

_T = TypeVar("_T")

_ACCEPT = TypeAdapter(AcceptRecord)
_DISPATCH = TypeAdapter(DispatchRecord)
_TERMINAL = TypeAdapter(TerminalRecord)
_SESSION = TypeAdapter(SessionRecord)


class RecordFormatError(ValueError):
    """A stored record that this version cannot read."""


def encode_accept(record: AcceptRecord) -> tuple[str, bytes]:
    """Returns the record without its payload, and the payload."""
    text = _ACCEPT.dump_json(record, exclude={"spec": {"payload"}})
    return text.decode(), record.spec.payload


def decode_accept(version: int, text: str, payload: bytes) -> AcceptRecord:
    """Reads what `encode_accept` wrote. Raises `RecordFormatError`."""
    record = _decode(_ACCEPT, version, text)
    return replace(record, spec=replace(record.spec, payload=payload))


def encode_dispatch(record: DispatchRecord) -> str:
    """Returns the record as text."""
    return _DISPATCH.dump_json(record).decode()


def decode_dispatch(version: int, text: str) -> DispatchRecord:
    """Reads what `encode_dispatch` wrote. Raises `RecordFormatError`."""
    return _decode(_DISPATCH, version, text)


def encode_terminal(record: TerminalRecord) -> str:
    """Returns the record as text."""
    return _TERMINAL.dump_json(record).decode()


def decode_terminal(version: int, text: str) -> TerminalRecord:
    """Reads what `encode_terminal` wrote. Raises `RecordFormatError`."""
    return _decode(_TERMINAL, version, text)


def encode_session(record: SessionRecord) -> str:
    """Returns the record as text."""
    return _SESSION.dump_json(record).decode()


def decode_session(version: int, text: str) -> SessionRecord:
    """Reads what `encode_session` wrote. Raises `RecordFormatError`."""
    return _decode(_SESSION, version, text)


def _decode(adapter: TypeAdapter[_T], version: int, text: str) -> _T:
    if version != FORMAT_VERSION:
        raise RecordFormatError(f"format {version}, this version reads {FORMAT_VERSION}")
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        # The text of a ValidationError quotes the input, which may hold what must not be logged.
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:4])
        raise RecordFormatError(f"unreadable: {fields or 'not JSON'}") from None
