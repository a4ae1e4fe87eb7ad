"""What a model file says about keys and values of the embedded engine. LO-205."""

from pathlib import Path

import gguf
import pytest

from pool_managerd.engines.gguf_kv import KvFacts, kv_facts, read_model
from pool_managerd.engines.gguf_metadata import read_metadata
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model


def test_a_model_file_tells_what_a_slot_takes(tmp_path: Path) -> None:
    """3 layers, 2 heads of 8 of 4 elements, keys and values, 2 bytes each."""
    path = tmp_path / "tiny.gguf"
    write_tiny_model(path, TinyShape(embedding=32, layers=3, heads=8, kv_heads=2))

    assert kv_facts(path, 1_024, 16) == KvFacts(3 * 2 * 4 * 2 * 2, 1_024 * 96)


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"not a model"])
def test_a_file_that_says_nothing_is_no_failure(tmp_path: Path, content: bytes | None) -> None:
    """The engine decides what it can load; the size is then not known."""
    path = tmp_path / "absent.gguf"
    if content is not None:
        path.write_bytes(content)

    assert kv_facts(path, 1_024, 16) is None


def test_a_split_model_whose_first_part_has_no_tensors_is_that_of_the_second(
    tmp_path: Path,
) -> None:
    """So llama.cpp splits with `--no-tensor-first-split`, and so the largest models come."""
    whole = tmp_path / "whole.gguf"
    write_tiny_model(whole)
    first, second = (tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2))
    writer = gguf.GGUFWriter(first, "llama")
    for key, value in read_metadata(whole).items():
        if isinstance(value, int) and not isinstance(value, bool):
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    second.write_bytes(whole.read_bytes())

    found = read_model(first)

    assert found.tensors == read_model(whole).tensors
    assert found.dimensions == read_model(whole).dimensions
