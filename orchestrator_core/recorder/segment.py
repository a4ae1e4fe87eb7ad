"""One file of a recording: how it is written and read.

    llama-orch flight recording 1       format version, a line
    {"rules_version": ..., ...}           header, a line of JSON
    deflate stream of frames              u32 length, u32 CRC-32, kind (1 byte), body

A process that dies leaves a file that ends anywhere; everything before that point is read. What
cannot be a cut, a byte that was changed, is reported.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from orchestrator_core.core.config import CoreConfig

FORMAT_VERSION = 1
SUFFIX = ".flight"
_MAGIC = b"llama-orch flight recording "
_FRAME = struct.Struct(">II")
_READ_BYTES = 1 << 16
# Compressed at once: each call gives the interpreter away, and must wait to get it back.
_GATHER_BYTES = 1 << 14
_HEADER_BYTES_MAX = 1 << 20
_FRAME_BYTES_MAX = 1 << 30

CHECKPOINT_PIECE, CHECKPOINT_END, STEP, END = b"c", b"C", b"S", b"E"


class RecordingError(Exception):
    """A recording cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment was recorded by and with.

    `run` is the instant at which the recording process began, `number` counts its segments.
    `follows` says that not a step is missing between the segment before and this one. `layout`
    names the fields of the state's tables.
    """

    rules_version: int
    build: str
    layout: str
    run: int
    number: int
    follows: bool
    first_step: int
    started_ms: int
    config: CoreConfig

    @property
    def file_name(self) -> str:
        """Names sort in the order of recording."""
        return f"{self.run:014d}-{self.number:06d}-{self.started_ms:014d}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a segment."""

    kind: bytes
    body: bytes


class SegmentWriter:
    """Writes one segment; the file is readable for its owner alone. Raises `OSError`."""

    def __init__(self, directory: Path, header: Header) -> None:
        self.path = directory / header.file_name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._file: BinaryIO = os.fdopen(os.open(self.path, flags, 0o600), "wb", buffering=0)
        self._deflate = zlib.compressobj(1)
        self._gathered = bytearray()
        self.bytes_written = 0
        try:
            self._put(_MAGIC + str(FORMAT_VERSION).encode() + b"\n")
            self._put(msgspec.json.encode(header) + b"\n")
        except OSError:
            self.abandon()
            raise

    def add(self, kind: bytes, body: bytes) -> None:
        """Appends a frame; it is on its way to the file after `flush`."""
        framed = kind + body
        head = _FRAME.pack(len(framed), zlib.crc32(framed))
        self._gathered += head
        self._gathered += framed
        if len(self._gathered) >= _GATHER_BYTES:
            self._compress()

    def flush(self) -> None:
        """Hands everything to the operating system; a dying process no longer loses it."""
        self._compress()
        self._put(self._deflate.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        """Ends the file. Idempotent."""
        if not self._file.closed:
            try:
                self._compress()
                self._put(self._deflate.flush(zlib.Z_FINISH))
            finally:
                self._file.close()

    def abandon(self) -> None:
        """Lets go of the file as it is; on a broken disk closing fails as well. Never raises."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _compress(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._put(self._deflate.compress(gathered))

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self.bytes_written += written
            view = view[written:]


def read_header(path: Path) -> Header | None:
    """The header, or None for a file that was cut before its end.

    Raises:
        RecordingError: for another format, or a file that is no recording.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        return _header(path, file)


def read_frames(path: Path) -> Iterator[Frame]:
    """All complete frames, in order.

    Raises:
        RecordingError: for another format, a file that is no recording, or a damaged one.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        if _header(path, file) is None:
            return
        held = bytearray()
        try:
            for data in _inflated(file):
                held += data
                yield from _complete(path, held)
        except zlib.error as error:
            raise RecordingError(f"{path}: the file is damaged: {error}") from error


def _header(path: Path, file: BinaryIO) -> Header | None:
    magic, line = file.readline(len(_MAGIC) + 20), file.readline(_HEADER_BYTES_MAX)
    if not magic.startswith(_MAGIC):
        if _MAGIC.startswith(magic):
            return None
        raise RecordingError(f"{path}: not a flight recording")
    version = magic[len(_MAGIC) :].strip()
    if magic.endswith(b"\n") and version != str(FORMAT_VERSION).encode():
        told = version.decode("ascii", "replace")
        raise RecordingError(
            f"{path}: recorded in format {told}, this version reads format {FORMAT_VERSION}"
        )
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecordingError(f"{path}: the header cannot be read: {error}") from error


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    while (data := file.read(_READ_BYTES)) and not inflate.eof:
        while data:
            yield inflate.decompress(data, 16 * _READ_BYTES)
            data = inflate.unconsumed_tail


def _complete(path: Path, held: bytearray) -> Iterator[Frame]:
    """Takes complete frames off the front."""
    start = 0
    while len(held) - start >= _FRAME.size:
        length, crc = _FRAME.unpack_from(held, start)
        if not 0 < length <= _FRAME_BYTES_MAX:
            raise RecordingError(f"{path}: the file is damaged: a frame of {length} bytes")
        begin, end = start + _FRAME.size, start + _FRAME.size + length
        if len(held) < end:
            break
        framed = bytes(held[begin:end])
        if zlib.crc32(framed) != crc:
            raise RecordingError(f"{path}: the file is damaged: a checksum differs")
        yield Frame(framed[:1], framed[1:])
        start = end
    del held[:start]
