"""The generated model."""

import hashlib
from pathlib import Path

import gguf
import pytest

from pool_managerd.models.tiny_gguf import TINY, TinyShape, write_tiny_model

SMALL = TinyShape(embedding=16, layers=1, heads=2, kv_heads=1, feed_forward=16)


def test_every_run_writes_the_same_bytes(tmp_path: Path) -> None:
    """The file is a function of the shape, on every machine."""
    write_tiny_model(tmp_path / "one.gguf")
    write_tiny_model(tmp_path / "two.gguf")

    content = (tmp_path / "one.gguf").read_bytes()
    assert content == (tmp_path / "two.gguf").read_bytes()
    assert (
        hashlib.sha256(content).hexdigest()
        == "25ba814df3e5a1dee9089a05d1a334ea7fdd6ed02ad856d162022a59b57c155d"
    )


def test_other_seeds_and_shapes_give_other_models(tmp_path: Path) -> None:
    """Each shape is a model of its own."""
    shapes = [TINY, TinyShape(seed=2), SMALL]
    contents = set()
    for shape in shapes:
        write_tiny_model(tmp_path / "model.gguf", shape)
        contents.add((tmp_path / "model.gguf").read_bytes())

    assert len(contents) == len(shapes)


def test_the_vocabulary_covers_every_byte_and_has_437_tokens(tmp_path: Path) -> None:
    """Any text can be a prompt, and only control tokens are control tokens."""
    write_tiny_model(tmp_path / "model.gguf", SMALL)

    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()

    assert len(tokens) == len(set(tokens)) == len(types) == 437
    assert sum(len(token) == 1 for token in tokens) == 256
    control = [token for token, kind in zip(tokens, types, strict=True) if kind != 1]
    assert len(control) == 4
    assert all(token.startswith("<|") for token in control)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    """Readers never see half a model."""
    target = tmp_path / "model.gguf"
    target.mkdir()

    with pytest.raises(OSError, match=r"model\.gguf"):
        write_tiny_model(target, SMALL)

    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "shape", [{"heads": 3}, {"kv_heads": 3}, {"layers": 0}, {"feed_forward": 0}]
)
def test_shapes_that_are_no_llama_model_are_refused(shape: dict[str, int]) -> None:
    """A wrong number fails here and not inside the engine."""
    with pytest.raises(ValueError, match="must"):
        TinyShape(**shape)
