"""Whether a GGUF file is a model at all, without an engine that would try to load it."""

from pathlib import Path

from pool_managerd.core.tellable import shown_text
from pool_managerd.engines.gguf_file import gguf_shards, gguf_shortfalls
from pool_managerd.engines.gguf_metadata import MetadataError, read_tensors

_MODEL = "model"


def no_model(path: Path) -> str:
    """Why a file cannot be loaded as a model, in one sentence; empty when nothing is seen.

    Blocks for milliseconds, with a vocabulary of 128,000 for a fraction of a second. The weights
    are not read. Source: gguf.md, `general.type`.
    """
    if missing := gguf_shortfalls(path):
        return missing[0]
    try:
        parts = [read_tensors(shard) for shard in gguf_shards(path)]
    except MetadataError as error:
        return f"model file {path} cannot be understood: {error}"
    except OSError as error:
        return f"model file {path} cannot be read: {error.strerror or error}"
    kind = parts[0][0].get("general.type", _MODEL)
    if kind != _MODEL:
        told = shown_text(str(kind))
        return f"model file {path} is of the type {told}, it is no model by itself"
    if not any(tensors for _, tensors in parts):
        return f"model file {path} holds no weights"
    return ""
