"""LO-205: the arithmetic of keys and values, against a count that stores every element."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.kv_size import (
    CacheShape,
    CacheType,
    DimensionsError,
    Layer,
    ModelDimensions,
    kv_bytes,
    kv_bytes_per_token,
)

CTX = st.integers(0, 600)
TYPES = st.sampled_from(CacheType)
QUANTIZED = [kind for kind in CacheType if kind.value[1] > 1]
LAYERS = st.builds(
    Layer,
    key_elements=st.integers(0, 300),
    value_elements=st.integers(0, 300),
    window=st.one_of(st.none(), st.integers(1, 400)),
    state_elements=st.integers(0, 40),
)
MODELS = st.lists(LAYERS, min_size=1, max_size=5).map(lambda some: ModelDimensions(tuple(some)))
SHAPES = st.builds(
    CacheShape,
    type_k=TYPES,
    type_v=TYPES,
    sequences=st.integers(1, 4),
    unified=st.booleans(),
    batch_tokens=st.integers(0, 70),
    pad_tokens=st.sampled_from((1, 32, 256)),
)


def naive_bytes(model: ModelDimensions, ctx_tokens: int, shape: CacheShape) -> int:
    """Fills blocks cell by cell; knows nothing of closed formulas."""
    total = 0
    for layer in model.layers:
        total += 4 * layer.state_elements * shape.sequences
        for share in [shape.sequences] if shape.unified else [1] * shape.sequences:
            cells = ctx_tokens * share
            if layer.window is not None:
                kept = layer.window * share + shape.batch_tokens
                while kept % shape.pad_tokens:
                    kept += 1
                cells = min(cells, kept)
            for kind, elements in (
                (shape.type_k, layer.key_elements),
                (shape.type_v, layer.value_elements),
            ):
                _, block_elements, block_bytes = kind.value
                blocks = len(range(0, elements, block_elements))
                total += cells * blocks * block_bytes
    return total


@given(MODELS, CTX, SHAPES)
def test_it_agrees_with_a_count_of_blocks(
    model: ModelDimensions, ctx_tokens: int, shape: CacheShape
) -> None:
    """Every kind of layer, type and layout."""
    assert kv_bytes(model, ctx_tokens, shape) == naive_bytes(model, ctx_tokens, shape)


@given(MODELS, CTX, CTX, SHAPES)
def test_more_context_never_takes_less(
    model: ModelDimensions, one: int, other: int, shape: CacheShape
) -> None:
    """Monotone in the context, and each further token takes at most the slope."""
    less, more = sorted((one, other))
    growth = kv_bytes(model, more, shape) - kv_bytes(model, less, shape)

    most = (more - less) * shape.sequences * kv_bytes_per_token(model, shape)
    assert 0 <= growth <= most


@given(MODELS, MODELS, CTX, SHAPES)
def test_layers_add_up(
    one: ModelDimensions, other: ModelDimensions, ctx_tokens: int, shape: CacheShape
) -> None:
    """A model takes what its layers take one by one."""
    both = ModelDimensions(one.layers + other.layers)
    apart = kv_bytes(one, ctx_tokens, shape) + kv_bytes(other, ctx_tokens, shape)

    assert kv_bytes(both, ctx_tokens, shape) == apart


@given(MODELS, SHAPES)
def test_a_window_bounds_what_is_kept(model: ModelDimensions, shape: CacheShape) -> None:
    """Beyond window, batch and padding nothing grows, and full attention is never exceeded."""
    sliding = ModelDimensions(tuple(replace(la, window=la.window or 7) for la in model.layers))
    full = ModelDimensions(tuple(replace(layer, window=None) for layer in model.layers))

    assert kv_bytes(sliding, 5_000, shape) == kv_bytes(sliding, 50_000, shape)
    for ctx_tokens in (1, 100, 5_000):
        assert kv_bytes(model, ctx_tokens, shape) <= kv_bytes(full, ctx_tokens, shape)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: str(kind.value[0]))
@given(rows=st.integers(1, 40), rest=st.integers(0, 31))
def test_a_quantized_row_is_whole_blocks(kind: CacheType, rows: int, rest: int) -> None:
    """A block that is begun counts whole; in whole blocks no quantized type exceeds 16 bits."""
    whole = kind.row_bytes(32 * rows)

    assert whole == rows * kind.value[2] < CacheType.F16.row_bytes(32 * rows)
    assert kind.row_bytes(32 * rows + rest) == whole + (kind.value[2] if rest else 0)


@given(
    st.integers(1, 16), st.integers(1, 8), st.integers(1, 4), CTX, st.sampled_from([32, 64, 128])
)
def test_size_scales_with_the_heads_of_keys(
    heads: int, times: int, layers: int, ctx_tokens: int, width: int
) -> None:
    """GQA: half the heads, half the size; MQA and MHA are its ends."""

    def of(count: int) -> int:
        model = ModelDimensions((Layer(count * width, count * width),) * layers)
        return kv_bytes(model, ctx_tokens, CacheShape(CacheType.Q8_0, CacheType.Q4_0))

    assert of(heads * times) == times * of(heads)


@given(MODELS, CTX, SHAPES)
def test_slots_of_their_own_share_nothing(
    model: ModelDimensions, ctx_tokens: int, shape: CacheShape
) -> None:
    """Without a unified cache, N slots take N times what one takes."""
    apart = replace(shape, unified=False)
    one = replace(apart, sequences=1)

    assert kv_bytes(model, ctx_tokens, apart) == apart.sequences * kv_bytes(model, ctx_tokens, one)


def test_sizes_of_blocks_are_those_of_ggml() -> None:
    """The table agrees with the library that writes and reads such files."""
    gguf = pytest.importorskip("gguf")

    for kind in set(CacheType) - {CacheType.FP8}:
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
        assert kind.value[1:] == expected
        assert CacheType.named(kind.value[0]) is kind


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("layers", lambda: ModelDimensions(())),
        ("layers[1].key_elements", lambda: ModelDimensions((Layer(), Layer(key_elements=-1)))),
        ("layers[0].value_elements", lambda: ModelDimensions((Layer(value_elements=-1),))),
        ("layers[0].state_elements", lambda: ModelDimensions((Layer(state_elements=-1),))),
        ("layers[0].window", lambda: ModelDimensions((Layer(window=0),))),
        ("sequences", lambda: CacheShape(sequences=0)),
        ("batch_tokens", lambda: CacheShape(batch_tokens=-1)),
        ("pad_tokens", lambda: CacheShape(pad_tokens=0)),
        ("ctx_tokens", lambda: kv_bytes(ModelDimensions((Layer(),)), -1)),
        ("cache_type", lambda: CacheType.named("q3_k")),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, make: object) -> None:
    """The error names the field."""
    with pytest.raises(DimensionsError) as refused:
        make()  # type: ignore[operator]

    assert refused.value.field == field
    assert str(refused.value).startswith(field)
