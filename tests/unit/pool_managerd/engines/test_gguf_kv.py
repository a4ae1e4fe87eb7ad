"""What a model file says about keys and values of the embedded engine. LO-205."""

from pathlib import Path

import pytest

from pool_managerd.engines.gguf_kv import KvFacts, kv_facts
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
