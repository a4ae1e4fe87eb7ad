"""What llama.cpp takes for a model file: its cache, and all of it. LO-205."""

from dataclasses import dataclass
from pathlib import Path

from pool_managerd.core.gguf_dimensions import from_gguf
from pool_managerd.core.gguf_fit import PAD_TOKENS, GgufModel, gguf_model
from pool_managerd.core.kv_size import (
    CacheShape,
    CacheType,
    DimensionsError,
    kv_bytes,
    kv_bytes_per_token,
)
from pool_managerd.engines.gguf_file import gguf_shards
from pool_managerd.engines.gguf_metadata import MetadataError, read_metadata, read_tensors


@dataclass(frozen=True, slots=True)
class KvFacts:
    """Bytes of keys and values: of one more token at most, and of a slot in all.

    Both come from one model, so what a context takes never exceeds what a slot has.
    """

    bytes_per_token: int
    slot_bytes: int


def kv_facts(
    model_path: Path,
    ctx_per_slot: int,
    batch_tokens: int,
    kv_type: CacheType = CacheType.F16,
) -> KvFacts | None:
    """Sizes for this file, None when it does not say enough. Blocks for milliseconds.

    The cache is as `embedded_worker` asks for it: one type, and each slot on its own.
    An architecture that is not known gives bounds (see `gguf_dimensions`).
    """
    try:
        model = from_gguf(read_metadata(gguf_shards(model_path)[0]))
    except (MetadataError, DimensionsError, OSError):
        return None
    shape = CacheShape(kv_type, kv_type, batch_tokens=batch_tokens, pad_tokens=PAD_TOKENS)
    return KvFacts(kv_bytes_per_token(model, shape), kv_bytes(model, ctx_per_slot, shape))


def trained_context(model_path: Path) -> int | None:
    """Tokens of the context that a model was trained with; None where its file does not say.

    Blocks for milliseconds. Source: gguf.md, `[llm].context_length`.
    """
    try:
        metadata = read_metadata(gguf_shards(model_path)[0])
    except (MetadataError, OSError):
        return None
    tokens = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def read_model(model_path: Path) -> GgufModel:
    """What a file, or all parts of a split one, says of the memory it takes. Blocks.

    Milliseconds, with a vocabulary of 128,000 a fraction of a second.

    Raises:
        MetadataError: when a file cannot be understood.
        DimensionsError: when a key is missing or cannot be; it is named.
        OSError: when a file cannot be read.
    """
    parts = [read_tensors(shard) for shard in gguf_shards(model_path)]
    tensors = tuple(tensor for _, found in parts for tensor in found)
    return gguf_model(parts[0][0], tensors)
