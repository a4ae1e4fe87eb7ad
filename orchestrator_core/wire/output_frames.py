"""Output read off the wire without message objects: what hosts send all the time, and its chunks.

Only the usual form is read here, in which encoders of protobuf write these messages. For any other,
even a valid one, the answer is None, and whoever asked lets protobuf read it. Compiled, that is
several times as fast as message objects, whose repeated fields cost more than what is in them.
Interpreted it is slower, so there the answer is always None.
Source: protobuf.dev/programming-guides/encoding.
"""

from typing import Final

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb

COMPILED: Final = not __file__.endswith(".py")

_VARINT: Final = 0
_FIXED64: Final = 1
_LEN: Final = 2
_MORE: Final = 0x80
_DIGIT: Final = 0x7F
# Longer numbers are left to protobuf, which knows where each kind of field is cut off.
_SHIFT_MAX: Final = 21
_SEQ_SHIFT_MAX: Final = 28

_FRAME: Final = pb.DispatchRequest.FRAME_FIELD_NUMBER << 3 | _LEN
_FRAME_SEQ: Final = dispatch_pb2.HostFrame.FRAME_SEQ_FIELD_NUMBER << 3 | _VARINT
_APPLIED_SEQ: Final = dispatch_pb2.HostFrame.APPLIED_DISPATCH_SEQ_FIELD_NUMBER << 3 | _VARINT
_TOKENS: Final = dispatch_pb2.HostFrame.TOKENS_FIELD_NUMBER << 3 | _LEN
_COLUMNS: Final = tuple(
    number << 3 | _LEN
    for number in (
        dispatch_pb2.TokenFrames.HANDLES_FIELD_NUMBER,
        dispatch_pb2.TokenFrames.FIRST_INDEXES_FIELD_NUMBER,
        dispatch_pb2.TokenFrames.PIECE_COUNTS_FIELD_NUMBER,
        dispatch_pb2.TokenFrames.TEXT_OFFSETS_FIELD_NUMBER,
        dispatch_pb2.TokenFrames.TEXT_BYTES_FIELD_NUMBER,
    )
)
_CHUNKS: Final = dispatch_pb2.TokenFrames.CHUNKS_FIELD_NUMBER << 3 | _LEN

_ATTEMPT: Final = events_pb2.TokenBatch.ATTEMPT_FIELD_NUMBER << 3 | _VARINT
_FIRST_INDEX: Final = events_pb2.TokenBatch.FIRST_INDEX_FIELD_NUMBER << 3 | _VARINT
_TEXT_OFFSET: Final = events_pb2.TokenBatch.TEXT_OFFSET_FIELD_NUMBER << 3 | _VARINT
_DIGEST: Final = events_pb2.TokenBatch.PREFIX_DIGEST_FIELD_NUMBER << 3 | _FIXED64
_PIECE: Final = events_pb2.TokenBatch.PIECES_FIELD_NUMBER << 3 | _LEN
_TOKEN_IDS: Final = events_pb2.TokenBatch.TOKEN_IDS_FIELD_NUMBER << 3 | _LEN
_TOKEN_COUNTS: Final = events_pb2.TokenBatch.TOKEN_COUNTS_FIELD_NUMBER << 3 | _LEN
_DIGEST_BYTES: Final = 8


class Columns:
    """Output of any number of attempts, as `dispatch.TokenFrames`; all lists are equally long."""

    __slots__ = ("chunks", "first_indexes", "handles", "piece_counts", "text_bytes", "text_offsets")

    def __init__(
        self,
        handles: list[int],
        first_indexes: list[int],
        piece_counts: list[int],
        text_offsets: list[int],
        text_bytes: list[int],
        chunks: list[bytes],
    ) -> None:
        self.handles = handles
        self.first_indexes = first_indexes
        self.piece_counts = piece_counts
        self.text_offsets = text_offsets
        self.text_bytes = text_bytes
        self.chunks = chunks


class OutputFrame:
    """A frame with nothing but output."""

    __slots__ = ("applied_dispatch_seq", "columns", "frame_seq")

    def __init__(self, frame_seq: int, applied_dispatch_seq: int, columns: Columns) -> None:
        self.frame_seq = frame_seq
        self.applied_dispatch_seq = applied_dispatch_seq
        self.columns = columns


def read_output_frame(message: bytes) -> OutputFrame | None:
    """Reads a DispatchRequest; None unless it is a frame of output in its usual form."""
    if not COMPILED:
        return None
    end = len(message)
    at, stop = _field(message, 0, end, _FRAME)
    if stop != end:
        return None
    frame_seq = applied_seq = 0
    columns: Columns | None = None
    while at < end:
        tag = message[at]
        value, at = _varint(message, at + 1, _SEQ_SHIFT_MAX)
        if tag == _FRAME_SEQ:
            frame_seq = value
        elif tag == _APPLIED_SEQ:
            applied_seq = value
        elif tag == _TOKENS and columns is None:
            columns = _columns(message, at, at + value)
            at += value
            if columns is None:
                return None
        else:
            return None
        if at < 0:
            return None
    return None if columns is None else OutputFrame(frame_seq, applied_seq, columns)


def read_chunk(chunk: bytes, text_offset: int, pieces: int) -> bytes | None:
    """The text of a TokenBatch.

    None unless it has so many pieces, begins at that byte of the output and has its usual form.
    """
    if not COMPILED:
        return None
    texts: list[bytes] = []
    if _chunk_fields(chunk, texts) != text_offset or len(texts) != pieces:
        return None
    text = texts[0] if pieces == 1 else b"".join(texts)
    return text if text.isascii() or all(map(_is_text, texts)) else None


def columns_of(tokens: dispatch_pb2.TokenFrames) -> Columns:
    """The columns of a message that protobuf has read; they must be equally long."""
    return Columns(
        list(tokens.handles),
        list(tokens.first_indexes),
        list(tokens.piece_counts),
        list(tokens.text_offsets),
        list(tokens.text_bytes),
        list(tokens.chunks),
    )


def _columns(data: bytes, at: int, end: int) -> Columns | None:
    if end > len(data):
        return None
    numbers: list[list[int]] = []
    for tag in _COLUMNS:
        start, at = _field(data, at, end, tag)
        column = _numbers(data, start, at)
        if column is None:
            return None
        numbers.append(column)
    chunks: list[bytes] = []
    while 0 <= at < end:
        start, at = _field(data, at, end, _CHUNKS)
        chunks.append(data[start:at])
    if at != end or any(len(column) != len(chunks) for column in numbers):
        return None
    return Columns(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], chunks)


def _chunk_fields(chunk: bytes, texts: list[bytes]) -> int:
    """Offset of a TokenBatch, whose pieces go to `texts`; -1 for another form."""
    at, end, offset = 0, len(chunk), 0
    while 0 <= at < end:
        tag = chunk[at]
        if tag == _PIECE:
            start, at = _field(chunk, at, end, tag)
            texts.append(chunk[start:at])
        elif tag in (_TOKEN_IDS, _TOKEN_COUNTS):
            start, at = _field(chunk, at, end, tag)
            if not _are_numbers(chunk, start, at):
                return -1
        elif tag == _DIGEST:
            at += 1 + _DIGEST_BYTES
        elif tag == _TEXT_OFFSET:
            offset, at = _varint(chunk, at + 1)
        elif tag in (_ATTEMPT, _FIRST_INDEX):
            _, at = _varint(chunk, at + 1)
        else:
            return -1
    return offset if at == end else -1


def _field(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of the field at a place begins and ends; -1 unless it is whole and that."""
    if at < 0 or at >= end or data[at] != tag:
        return -1, -1
    length, at = _varint(data, at + 1)
    stop = at + length
    return (at, stop) if at >= 0 and stop <= end else (-1, -1)


def _varint(data: bytes, at: int, shift_max: int = _SHIFT_MAX) -> tuple[int, int]:
    """A number and the place after it; -1 and -1 for one that is cut off or longer than that."""
    value = shift = 0
    end = len(data)
    while at < end and shift <= shift_max:
        byte = data[at]
        at += 1
        value |= (byte & _DIGIT) << shift
        if byte < _MORE:
            return value, at
        shift += 7
    return -1, -1


def _numbers(data: bytes, at: int, end: int) -> list[int] | None:
    """Numbers in a row; None when one is longer than four bytes or cut off, or `end` is -1."""
    if end < 0:
        return None
    numbers: list[int] = []
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        if byte < _MORE:
            numbers.append(value | byte << shift)
            value = shift = 0
        else:
            value |= (byte & _DIGIT) << shift
            shift += 7
            if shift > _SHIFT_MAX:
                return None
    return None if shift else numbers


def _are_numbers(data: bytes, at: int, end: int) -> bool:
    """True for numbers in a row of at most four bytes each."""
    run = 0
    while at < end:
        run = run + 1 if data[at] >= _MORE else 0
        at += 1
        if run > _SHIFT_MAX // 7:
            return False
    return run == 0 <= end


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
