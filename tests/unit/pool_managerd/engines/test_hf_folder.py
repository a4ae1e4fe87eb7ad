"""Folders of config.json and safetensors. LO-205."""

import json
import math
from pathlib import Path

import pytest

from pool_managerd.engines.gguf_metadata import MetadataError
from pool_managerd.engines.hf_folder import read_hf_folder

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
}


def folder(path: Path, config: object = CONFIG, **files: bytes) -> Path:
    """A folder with a config and files; `__` in a name is a dot."""
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def index(size: object) -> bytes:
    """An index that tells this size."""
    return json.dumps({"metadata": {"total_size": size}}).encode()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a__safetensors": b"12345", "b__safetensors": b"123", "c__bin": b"1"}, 8),
        ({"model__safetensors__index__json": index(77), "a__safetensors": b"1"}, 77),
        ({"model__safetensors__index__json": index(77.0)}, 77),
        ({"model__safetensors__index__json": index(None), "a__safetensors": b"1"}, 1),
        ({"model__safetensors__index__json": b"{}", "a__bin": b"12"}, 2),
        ({"model__safetensors__index__json": index(math.inf), "a__bin": b"12"}, 2),
        ({"model__safetensors__index__json": index(10**40), "a__bin": b"12"}, 2),
    ],
)
def test_the_size_of_the_weights_is_found(
    tmp_path: Path, files: dict[str, bytes], expected: int
) -> None:
    """In the index, else that of the files."""
    model = read_hf_folder(folder(tmp_path, **files))

    assert (model.weights_bytes, model.heads) == (expected, 4)
    assert len(model.dimensions.layers) == 2


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        (CONFIG, {}, "holds no weights"),
        ([], {"a__bin": b"1"}, "not a JSON object"),
        (CONFIG, {"model__safetensors__index__json": b"{"}, "is not JSON"),
    ],
)
def test_a_folder_that_holds_no_model_is_named(
    tmp_path: Path, config: object, files: dict[str, bytes], said: str
) -> None:
    """What is wrong, in a few words."""
    with pytest.raises(MetadataError, match=said):
        read_hf_folder(folder(tmp_path, config, **files))
