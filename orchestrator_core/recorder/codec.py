"""Events, decisions and checkpoints as MessagePack, without any prompt.

Decoding goes by the type hints of the core's own classes: a recording can be opened without running
anything that is in it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import msgspec

from orchestrator_core.core.checkpoint import JOBS_AT, SPEC_COLUMN, Frozen, frozen_hint
from orchestrator_core.core.decided import Line
from orchestrator_core.core.events import EnqueueRequested, Event, Recovered
from orchestrator_core.core.records import AcceptRecord
from orchestrator_core.core.spec import JobSpec

# Equal values make equal bytes: state hashes rest on it.
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_STEP = msgspec.msgpack.Decoder(tuple[int, str, int, msgspec.Raw, msgspec.Raw])
_LINES = msgspec.msgpack.Decoder(list[tuple[str | int | float | bool | None, ...]] | None)
_EVENTS = {cls.__name__: msgspec.msgpack.Decoder(cls) for cls in get_args(Event)}
_FROZEN = msgspec.msgpack.Decoder(frozen_hint())

_ARRAY_32 = b"\xdd"
# The encoder holds the interpreter while it works: in pieces of this many rows the event loop gets
# its turn in between.
_ROWS_AT_ONCE = 64
_DEPTH_IN_PIECES = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it is recorded: a bare event, and what it decided, None when it raised."""

    number: int
    now_ms: int
    event: Event
    lines: list[Line] | None


def encode_step(step: Step) -> bytes:
    """A step, whose event must be bare."""
    body = (step.number, type(step.event).__name__, step.now_ms, step.event, step.lines)
    return _ENCODER.encode(body)


def decode_step(body: bytes) -> Step:
    """The step again.

    Raises:
        msgspec.MsgspecError: when it is none; `KeyError` for an event that this build lacks.
    """
    number, kind, now_ms, event, lines = _STEP.decode(body)
    return Step(number, now_ms, _EVENTS[kind].decode(event), _LINES.decode(lines))


def same_lines(lines: list[Line] | None, others: list[Line] | None) -> bool:
    """True when both say the same; to the last bit of a number."""
    return _ENCODER.encode(lines) == _ENCODER.encode(others)


def bare_event(event: Event) -> Event:
    """The event without what a client wrote; the core never looks at it."""
    if isinstance(event, EnqueueRequested):
        bare = _bare(event.spec)
        return event if bare is event.spec else replace(event, spec=bare)
    if isinstance(event, Recovered):
        return replace(event, accepts=tuple(map(_bare_accept, event.accepts)))
    return event


def encode_frozen(frozen: Frozen) -> Iterator[bytes]:
    """A checkpoint in pieces, which belong together; payloads are replaced by nothing."""
    yield _header(2) + _ENCODER.encode(frozen.last_ms) + _header(len(frozen.tables))
    for index, table in enumerate(frozen.tables):
        if index != JOBS_AT and len(table) < _ROWS_AT_ONCE:
            yield from _pieces(tuple(table), 0)
            continue
        yield _header(len(table))
        for start in range(0, len(table), _ROWS_AT_ONCE):
            rows: Iterable[object] = table[start : start + _ROWS_AT_ONCE]
            if index == JOBS_AT:
                rows = map(_bare_row, rows)
            yield b"".join(map(_ENCODER.encode, rows))


def decode_frozen(body: bytes) -> Frozen:
    """The checkpoint again.

    Raises:
        msgspec.MsgspecError: when it is none.
    """
    return Frozen(*_FROZEN.decode(body))


def state_hash(frozen: Frozen) -> bytes:
    """Sixteen bytes that differ when two states do."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in encode_frozen(frozen):
        digest.update(piece)
    return digest.digest()


def _bare(spec: JobSpec) -> JobSpec:
    if not spec.payload and not spec.labels:
        return spec
    return replace(spec, payload=b"", labels=())


def _bare_accept(accept: AcceptRecord) -> AcceptRecord:
    return replace(accept, spec=_bare(accept.spec))


def _bare_row(row: object) -> object:
    plain, *rest = cast("Sequence[Sequence[object]]", row)
    spec = cast("JobSpec", plain[SPEC_COLUMN])
    if not spec.payload and not spec.labels:
        return row
    return (*plain[:SPEC_COLUMN], _bare(spec), *plain[SPEC_COLUMN + 1 :]), *rest


def _header(length: int) -> bytes:
    return _ARRAY_32 + length.to_bytes(4, "big")


def _pieces(value: object, depth: int) -> Iterator[bytes]:
    """Encodes nested tuples piece by piece."""
    if not isinstance(value, tuple) or depth > _DEPTH_IN_PIECES:
        yield _ENCODER.encode(value)
        return
    yield _header(len(value))
    if len(value) <= _ROWS_AT_ONCE:
        for item in value:
            yield from _pieces(item, depth + 1)
        return
    for start in range(0, len(value), _ROWS_AT_ONCE):
        yield b"".join(map(_ENCODER.encode, value[start : start + _ROWS_AT_ONCE]))
