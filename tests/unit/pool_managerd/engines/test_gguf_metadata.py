"""Metadata of GGUF files: what the library writes is read, what is broken is refused. LO-205."""

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pool_managerd.engines.gguf_metadata import (
    KEPT_ENTRIES,
    MetadataError,
    read_metadata,
    read_tensors,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind of value, large ones among them."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -70_000)
    writer.add_uint64("u64", 1 << 40)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.25)
    writer.add_bool("flag", val=True)
    writer.add_array("heads", [8, 0, 2])
    writer.add_array("pattern", [True, False])
    writer.add_array("tokens", [f"token {n}" for n in range(500)])
    writer.add_array("scores", [1.0] * (KEPT_ENTRIES + 1))
    writer.add_string("template", "x" * 5_000)
    writer.add_uint32("last", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_what_the_library_writes_is_read(written: Path) -> None:
    """Every kind of number; long lists, lists of strings and long strings are skipped."""
    assert read_metadata(written) == {
        "general.architecture": "llama",
        "u8": 200,
        "i8": -3,
        "u16": 60_000,
        "i16": -300,
        "u32": 4_000_000_000,
        "i32": -70_000,
        "u64": 1 << 40,
        "i64": -(1 << 40),
        "f32": 0.5,
        "f64": 0.25,
        "flag": True,
        "heads": [8, 0, 2],
        "pattern": [True, False],
        "last": 7,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(20),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 62),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 2, 1, b"k", 9, 4, 1 << 62),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"\xff", 4),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, foreign, of another version or byte order, and lengths beyond its end."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)

    with pytest.raises(MetadataError):
        read_metadata(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_else(data: st.DataObject, written: Path, tmp_path: Path) -> None:
    """Whatever byte is changed and wherever the file ends: metadata, or the one error."""
    content = bytearray(written.read_bytes())
    at = data.draw(st.integers(0, 700))
    content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.integers(at, len(content)))])

    try:
        found = read_metadata(path)
    except MetadataError:
        return
    assert isinstance(found, dict)


def test_a_file_may_have_metadata_alone(tmp_path: Path) -> None:
    """The first part of a split model often has no tensor; so have files of a vocabulary."""
    path = tmp_path / "m-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    metadata, tensors = read_tensors(path)

    assert (metadata["llama.block_count"], tensors) == (7, ())


def test_lists_are_kept_within_a_bound_in_all(tmp_path: Path) -> None:
    """A file of nothing but lists is read, and does not fill the memory."""
    path = tmp_path / "lists.gguf"
    entries, keys = KEPT_ENTRIES, 1_000
    one = struct.pack(f"<II{'Q'}", 9, 0, entries) + bytes(entries)
    content = b"".join(struct.pack("<Q4s", 4, b"%04d" % key) + one for key in range(keys))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, keys) + content)

    found = read_metadata(path)

    kept = [value for value in found.values() if isinstance(value, list)]
    assert 0 < len(kept) < keys
    assert sum(map(len, kept)) <= 1 << 20


def test_a_list_of_more_texts_than_any_vocabulary_has_is_refused(tmp_path: Path) -> None:
    """A file may be sparse: petabytes of empty texts cost its author nothing."""
    path = tmp_path / "texts.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 40))
    with path.open("ab") as file:
        file.truncate(1 << 43)

    with pytest.raises(MetadataError, match="texts"):
        read_metadata(path)
