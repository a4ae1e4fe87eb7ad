"""Models as the catalog knows them: values that travel and never change. ORCH-3031."""

import enum
from dataclasses import dataclass
from typing import Final


class ModelState(enum.Enum):
    """Whether jobs may be given to a model."""

    ACTIVE = "active"
    RETIRED = "retired"


# Elements and bytes of a block of each type in which keys and values are cached.
# Source: ggml's type table, as in `gguf.GGML_QUANT_SIZES`; fp8 is vLLM's. A test holds it to that
# of pool-managerd, which reckons from the model's file.
CACHE_TYPES: Final = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "fp8": (1, 1),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What one sequence keeps of its context. LO-205.

    `window_layers` of the `layers` look back on `window_tokens` only. Lengths in elements per head;
    types are keys of `CACHE_TYPES`.
    """

    layers: int
    kv_heads: int
    key_length: int
    value_length: int
    window_layers: int = 0
    window_tokens: int = 0
    key_type: str = "f16"
    value_type: str = "f16"

    def kv_bytes(self, ctx_tokens: int) -> int:
        """Bytes of keys and values of a context; what an engine pads is not in it."""
        cell = _row_bytes(self.key_type, self.kv_heads * self.key_length)
        cell += _row_bytes(self.value_type, self.kv_heads * self.value_length)
        windowed = min(ctx_tokens, self.window_tokens)
        cells = (self.layers - self.window_layers) * ctx_tokens + self.window_layers * windowed
        return cells * cell


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What an operator states of a model; empty or None says nothing.

    `model_id` is the name under which pools serve it. `signature` is in base64, `labels` are sorted
    pairs, `min_compute_cap` is (major, minor), memory in bytes, contexts in tokens.
    """

    model_id: str
    aliases: tuple[str, ...] = ()
    model_ref: str = ""
    digest: str = ""
    signature: str = ""
    engines: tuple[str, ...] = ()
    engine_version: str = ""
    sampler_profile_version: str = ""
    quantization: str = ""
    ctx_max: int | None = None
    dimensions: Dimensions | None = None
    min_vram_bytes: int | None = None
    min_compute_cap: tuple[int, int] | None = None
    required_extensions: tuple[str, ...] = ()
    device_mask: tuple[str, ...] = ()
    bytes_per_token: float | None = None
    expected_tokens: int | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model of the catalog. Instants in milliseconds of the core's clock.

    `retired_ms` and `grace_until_ms` are set exactly while it is RETIRED. `revision` counts its
    changes from 1.
    """

    card: ModelCard
    state: ModelState
    revision: int
    created_ms: int
    updated_ms: int
    retired_ms: int | None = None
    grace_until_ms: int | None = None
    replaced_by: str = ""


@dataclass(frozen=True, slots=True)
class FromCatalog:
    """What the catalog added to a job: names of fields and their values, as text, sorted.

    `alias` is the name that the job asked for, empty where that was the model's id.
    """

    alias: str
    revision: int
    filled: tuple[tuple[str, str], ...]


class DigestVerdict(enum.Enum):
    """How the digest that a pool reports compares with the catalog's. ORCH-3037."""

    MATCH = "match"
    MISMATCH = "mismatch"
    UNKNOWN = "unknown"


def judge_digest(stated: str, reported: str) -> DigestVerdict:
    """Compares digests; where one side says nothing, nothing is known."""
    if not stated or not reported:
        return DigestVerdict.UNKNOWN
    return DigestVerdict.MATCH if stated == reported else DigestVerdict.MISMATCH


def _row_bytes(kind: str, elements: int) -> int:
    block_elements, block_bytes = CACHE_TYPES[kind]
    return -(-elements // block_elements) * block_bytes
