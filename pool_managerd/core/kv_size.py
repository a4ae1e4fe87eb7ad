"""Bytes of keys and values that a context takes, from the dimensions of a model. LO-205.

Lives with the pool manager because the model file is on its host: orchestratord never sees the
weights. The pool manager reports bytes per token and bytes per slot, and orchestratord multiplies
(`orchestrator_core.core.feasibility.kv_needed_bytes`), so the formula exists once.

    kv(layer) = cells * (row(type_k, key_elements) + row(type_v, value_elements)) + state
    cells     = context                          full attention
              = min(context, pad(window + batch))   sliding window
    row(t, n) = whole blocks of type t that hold n elements

Only integers; everything is exact for what is known of a model. `ModelDimensions.exact` is False
where a bound stands in for what is not known.

Source: llama.cpp, src/llama-kv-cache.cpp and src/llama-kv-cache-iswa.cpp (rows, cells of sliding
layers padded to 256); https://arxiv.org/abs/2405.04434 section 2.1 (MLA caches one latent vector
and the shared rotary key per token and layer).
"""

import enum
from dataclasses import dataclass

_F32_BYTES = 4


class DimensionsError(ValueError):
    """A dimension that no model can have, or that is missing. `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class CacheType(enum.Enum):
    """Type of cached elements: name, elements of a block, bytes of a block.

    Source: ggml's type table, as in `gguf.GGML_QUANT_SIZES`; fp8 is vLLM's.
    """

    F32 = ("f32", 1, 4)
    F16 = ("f16", 1, 2)
    BF16 = ("bf16", 1, 2)
    FP8 = ("fp8", 1, 1)
    Q8_0 = ("q8_0", 32, 34)
    Q5_1 = ("q5_1", 32, 24)
    Q5_0 = ("q5_0", 32, 22)
    Q4_1 = ("q4_1", 32, 20)
    Q4_0 = ("q4_0", 32, 18)
    IQ4_NL = ("iq4_nl", 32, 18)

    @classmethod
    def named(cls, name: str) -> "CacheType":
        """The type called `name`, as engines spell it.

        Raises:
            DimensionsError: when there is none.
        """
        for kind in cls:
            if kind.value[0] == name:
                return kind
        known = ", ".join(kind.value[0] for kind in cls)
        raise DimensionsError("cache_type", f"is {name!r}, must be one of {known}")

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of `elements`: a block that is begun takes its whole size."""
        _, block_elements, block_bytes = self.value
        return -(-elements // block_elements) * block_bytes


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of a sequence.

    Elements of keys and of values per token; the tokens that a sliding layer looks back on, None
    with full attention; 32-bit elements of a recurrent state, whatever the length.
    """

    key_elements: int = 0
    value_elements: int = 0
    window: int | None = None
    state_elements: int = 0


@dataclass(frozen=True, slots=True)
class ModelDimensions:
    """The layers of a model, as far as its cache is concerned.

    `exact` is False where they are a bound; `note` then says of what.

    Raises:
        DimensionsError: when a number cannot be; the field is named.
    """

    layers: tuple[Layer, ...]
    exact: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses what no model can have."""
        if not self.layers:
            raise DimensionsError("layers", "is empty")
        for index, layer in enumerate(self.layers):
            for name in ("key_elements", "value_elements", "state_elements"):
                value = getattr(layer, name)
                if value < 0:
                    raise DimensionsError(f"layers[{index}].{name}", f"is {value}, below 0")
            if layer.window is not None and layer.window < 1:
                raise DimensionsError(f"layers[{index}].window", f"is {layer.window}, below 1")


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How an engine lays its cache out.

    `sequences` are the slots. A `unified` cache is one pool of cells for all of them, otherwise
    each has its own. `batch_tokens` are kept by sliding layers besides their window while a batch
    is computed, and their cells are padded to a multiple of `pad_tokens`.

    Raises:
        DimensionsError: when a number cannot be; the field is named.
    """

    type_k: CacheType = CacheType.F16
    type_v: CacheType = CacheType.F16
    sequences: int = 1
    unified: bool = False
    batch_tokens: int = 0
    pad_tokens: int = 1

    def __post_init__(self) -> None:
        """Refuses what no engine can have."""
        for name, least in (("sequences", 1), ("batch_tokens", 0), ("pad_tokens", 1)):
            value = getattr(self, name)
            if value < least:
                raise DimensionsError(name, f"is {value}, below {least}")


def kv_bytes(model: ModelDimensions, ctx_tokens: int, shape: CacheShape | None = None) -> int:
    """Bytes that a context of `ctx_tokens` per sequence takes, all sequences together. O(layers).

    Raises:
        DimensionsError: when `ctx_tokens` is negative.
    """
    return sum(kv_bytes_by_layer(model, ctx_tokens, shape))


def kv_bytes_by_layer(
    model: ModelDimensions, ctx_tokens: int, shape: CacheShape | None = None
) -> tuple[int, ...]:
    """The same for each layer: layers may lie in the memory of different devices. O(layers).

    Raises:
        DimensionsError: when `ctx_tokens` is negative.
    """
    if ctx_tokens < 0:
        raise DimensionsError("ctx_tokens", f"is {ctx_tokens}, below 0")
    laid_out = CacheShape() if shape is None else shape
    return tuple(
        layer_cells(layer, ctx_tokens, laid_out) * _cell_bytes(layer, laid_out)
        + laid_out.sequences * layer.state_elements * _F32_BYTES
        for layer in model.layers
    )


def kv_bytes_per_token(model: ModelDimensions, shape: CacheShape | None = None) -> int:
    """Bytes that one more token takes at most: beyond its window a sliding layer takes none."""
    laid_out = CacheShape() if shape is None else shape
    return sum(_cell_bytes(layer, laid_out) for layer in model.layers)


def _cell_bytes(layer: Layer, shape: CacheShape) -> int:
    keys = shape.type_k.row_bytes(layer.key_elements)
    return keys + shape.type_v.row_bytes(layer.value_elements)


def layer_cells(layer: Layer, ctx_tokens: int, shape: CacheShape) -> int:
    """Tokens for which a layer has room, all sequences together."""
    streams = 1 if shape.unified else shape.sequences
    in_stream = shape.sequences if shape.unified else 1
    cells = ctx_tokens * in_stream
    if layer.window is not None:
        kept = layer.window * in_stream + shape.batch_tokens
        cells = min(cells, -(-kept // shape.pad_tokens) * shape.pad_tokens)
    return streams * cells
