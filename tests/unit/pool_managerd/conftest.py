"""Models that the checks before an engine's start look at."""

import json
from pathlib import Path

import pytest

from pool_managerd.models.tiny_gguf import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of config.json and 1 MiB of weights."""
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (tmp_path / "a.safetensors").write_bytes(bytes(1 << 20))
    return tmp_path
