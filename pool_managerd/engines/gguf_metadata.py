"""Reads the metadata of a GGUF file, and skips what is large.

The `gguf` library makes an array of every token and merge, seconds of work for a vocabulary of
128,000; the few numbers that are wanted here take milliseconds.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

import itertools
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pool_managerd.core.graph_size import Tensor

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Types of values by their number: struct formats, little-endian.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
KEYS_MAX = 65_536
TENSORS_MAX = 1_000_000
_DIMENSIONS_MAX = 4
_ALIGNMENT = 32
KEPT_STRING_BYTES = 256
KEPT_ENTRIES = 4_096
KEPT_ENTRIES_IN_ALL = 1 << 20
TEXTS_MAX = 1 << 24
"""Texts in one list: far beyond any vocabulary, or its merges."""


class MetadataError(ValueError):
    """The file is not a GGUF file of a known version, or ends too early."""


class CutOffError(MetadataError):
    """The file ends before what it holds does: it was not copied or fetched to its end."""


def read_metadata(path: Path) -> Mapping[str, object]:
    """Numbers, short strings and short lists of numbers of the file, by key.

    Blocks for milliseconds; memory is bounded by what is kept.

    Raises:
        MetadataError: when the file cannot be understood.
        OSError: when it cannot be read.
    """
    return _read(path, with_tensors=False)[0]


def read_tensors(path: Path) -> tuple[Mapping[str, object], tuple[Tensor, ...]]:
    """The metadata and what the file says of its tensors; their data is not touched.

    A tensor's bytes are those up to the next one, so that types which nobody knows yet count too.

    Raises:
        MetadataError: when the file cannot be understood.
        OSError: when it cannot be read.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, *, with_tensors: bool) -> tuple[Mapping[str, object], tuple[Tensor, ...]]:
    # Read and not mapped: a file that is cut off meanwhile, or whose disk fails, would end the
    # process by a signal.
    with path.open("rb") as file:
        scanner = _Scanner(file)
        try:
            metadata = scanner.metadata()
            return metadata, scanner.tensors(metadata) if with_tensors else ()
        except UnicodeDecodeError as error:
            raise MetadataError("is damaged") from error


class _Scanner:
    """A position in the file; every read is checked against its end by `struct`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self._at = self._tensor_count = self._kept = 0

    def metadata(self) -> dict[str, object]:
        magic = self._bytes(len(_MAGIC))
        version, self._tensor_count, count = self._take("<IQQ")
        if magic != _MAGIC or version not in _VERSIONS:
            raise MetadataError("not a GGUF file of version 2 or 3 in little-endian order")
        if count > KEYS_MAX:
            raise MetadataError(f"{count} keys, at most {KEYS_MAX} are read")
        found: dict[str, object] = {}
        for _ in range(count):
            key = self._string(KEPT_STRING_BYTES)
            value = self._value(self._one("<I"))
            if key is not None and value is not None:
                found[key] = value
        return found

    def tensors(self, metadata: Mapping[str, object]) -> tuple[Tensor, ...]:
        """The tensors, once the metadata has been read."""
        if self._tensor_count > TENSORS_MAX:
            raise MetadataError(f"{self._tensor_count} tensors, at most {TENSORS_MAX} are read")
        found: list[tuple[int, str, tuple[int, ...]]] = []
        for _ in range(self._tensor_count):
            name = self._string(KEPT_STRING_BYTES) or ""
            count = self._one("<I")
            if count > _DIMENSIONS_MAX:
                raise MetadataError(f"has a tensor of {count} dimensions")
            dims = self._take(f"<{count}Q")
            self._take("<I")
            found.append((self._one("<Q"), name, dims))
        if not found:
            # The first part of a split model, or a vocabulary.
            return ()
        stated = metadata.get("general.alignment")
        alignment = stated if isinstance(stated, int) and stated > 0 else _ALIGNMENT
        data_bytes = self._size - -(-self._at // alignment) * alignment
        ends = [*sorted(offset for offset, _, _ in found)[1:], data_bytes]
        if any(first > second for first, second in itertools.pairwise(ends)):
            raise CutOffError("ends before its tensors do")
        return tuple(
            Tensor(name, dims, end - offset)
            for (offset, name, dims), end in zip(sorted(found), ends, strict=True)
        )

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string(KEPT_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(self._one("<I"), self._one("<Q"))
        return self._one(self._format(kind))

    def _array(self, kind: int, count: int) -> object:
        if kind == _STRING:
            if count > TEXTS_MAX:
                raise MetadataError(f"has a list of {count} texts, at most {TEXTS_MAX} are read")
            for _ in range(count):
                self._string(0)
            return None
        form = self._format(kind)
        if count <= min(KEPT_ENTRIES, KEPT_ENTRIES_IN_ALL - self._kept):
            self._kept += count
            return [self._one(form) for _ in range(count)]
        self._skip(struct.calcsize(form) * count, "an array")
        return None

    def _string(self, most_bytes: int) -> str | None:
        """The string at this place, None when it is longer than `most_bytes`."""
        size = self._one("<Q")
        if size <= most_bytes:
            return self._bytes(size).decode()
        self._skip(size, "a string")
        return None

    def _skip(self, size: int, what: str) -> None:
        self._at += size
        if self._at > self._size:
            raise CutOffError(f"ends within {what}")
        self._file.seek(self._at)

    def _bytes(self, size: int) -> bytes:
        found = self._file.read(size)
        self._at += len(found)
        if len(found) < size:
            raise CutOffError("ends within its metadata")
        return found

    def _format(self, kind: int) -> str:
        form = _SCALARS.get(kind)
        if form is None:
            raise MetadataError(f"has a value of the unknown type {kind}")
        return form

    def _one(self, form: str) -> int:
        value: int = self._take(form)[0]
        return value

    def _take(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))
