"""LO-205: what files say of a model, and what is made of files that say it badly."""

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.gguf_dimensions import from_gguf
from pool_managerd.core.hf_dimensions import from_hf_config
from pool_managerd.core.kv_size import DimensionsError, Layer, ModelDimensions
from tests.unit.pool_managerd.core import models
from tests.unit.pool_managerd.core.models import gguf

PLAIN = {"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}


def windows(model: ModelDimensions) -> list[int | None]:
    """The window of each layer."""
    return [layer.window for layer in model.layers]


@pytest.mark.parametrize(
    ("arch", "keys", "expected"),
    [
        ("llama", {"attention__sliding_window": 8}, [None] * 6),
        ("phi3", {"attention__sliding_window": 8}, [None] * 6),
        ("gemma2", {}, [4096, None] * 3),
        ("gemma3", {"attention__sliding_window": 8}, [8, 8, 8, 8, 8, None]),
        ("gemma3", {}, [None] * 6),
        ("gpt-oss", {"attention__sliding_window": 8}, [8, None] * 3),
        ("cohere2", {"attention__sliding_window": 8}, [8, 8, 8, None, 8, 8]),
        ("llama4", {}, [8192, 8192, 8192, None, 8192, 8192]),
        ("llama4", {"attention__sliding_window": 0}, [None] * 6),
        ("llama4", {"attention__sliding_window": 16}, [8192, 8192, 8192, None, 8192, 8192]),
        (
            "gemma3",
            {"attention__sliding_window": 8, "attention__sliding_window_pattern": 3},
            [8, 8, None] * 2,
        ),
        (
            "olmo2",
            {
                "attention__sliding_window": 8,
                "attention__sliding_window_pattern": [True, False, True],
            },
            [8, None, 8, None, None, None],
        ),
    ],
)
def test_gguf_layers_slide_as_in_llama_cpp(
    arch: str, keys: dict[str, object], expected: list[int | None]
) -> None:
    """By architecture, unless the file has a pattern of its own; after its end all is full."""
    model = from_gguf(gguf(arch, block_count=6, **PLAIN, **keys))

    assert (windows(model), model.exact, model.note) == (expected, True, "")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, [8, 8, 8, 8]),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 4),
        ({"model_type": "gemma2"}, [4096, None, 4096, None]),
        ({"model_type": "cohere2", "sliding_window": 8}, [8, 8, 8, None]),
        (
            {"model_type": "gemma3_text", "sliding_window": 8, "_sliding_window_pattern": 2},
            [8, None, 8, None],
        ),
        ({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}, [None] * 4),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "max_window_layers": 1,
                "use_sliding_window": True,
            },
            [None, 8, 8, 8],
        ),
        (
            {
                "model_type": "gpt_oss",
                "sliding_window": 8,
                "layer_types": ["full_attention", *["sliding_attention"] * 3],
            },
            [None, 8, 8, 8],
        ),
    ],
)
def test_hf_layers_slide_as_in_transformers(
    config: dict[str, object], expected: list[int | None]
) -> None:
    """By `layer_types`, by the architecture's rule, and not at all with a null window."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64}

    model = from_hf_config({**sizes, **config})

    assert (windows(model), model.exact) == (expected, True)


def test_heads_may_differ_from_layer_to_layer() -> None:
    """An array gives each layer its own; a layer without heads keeps no keys."""
    keys = {**PLAIN, "attention__head_count_kv": [2, 0, 1]}

    model = from_gguf(gguf("llama", block_count=3, **keys))

    assert [layer.key_elements for layer in model.layers] == [32, 0, 16]


def test_key_and_value_widths_are_taken_apart() -> None:
    """Widths that are stated go over the embedding's; sliding layers may have their own."""
    keys = {
        **PLAIN,
        "attention__key_length": 48,
        "attention__value_length": 24,
        "attention__key_length_swa": 8,
        "attention__sliding_window": 5,
    }

    model = from_gguf(gguf("gpt-oss", block_count=2, **keys))

    assert model.layers == (Layer(16, 48, 5), Layer(96, 48, None))


def test_old_deepseek_files_cache_plain_keys_and_values() -> None:
    """llama.cpp uses the latent form only where the file has its widths."""
    keys = {
        "embedding_length": 64,
        "attention__head_count": 4,
        "attention__key_length": 24,
        "attention__value_length": 16,
        "attention__kv_lora_rank": 8,
        "rope__dimension_count": 4,
    }

    old = from_gguf(gguf("deepseek2", block_count=2, **keys))
    new = from_gguf(gguf("deepseek2", block_count=2, attention__key_length_mla=24, **keys))

    assert old.layers == (Layer(96, 64),) * 2
    assert new.layers == (Layer(12, 0),) * 2


def test_recurrent_layers_keep_a_state_of_fixed_size() -> None:
    """A hybrid has keys where it has heads, and elsewhere (4 - 1) * (8 + 2 * 1 * 16) + 16 * 8."""
    keys = {
        **PLAIN,
        "attention__head_count_kv": [0, 2],
        "ssm__conv_kernel": 4,
        "ssm__inner_size": 8,
        "ssm__state_size": 16,
        "ssm__group_count": 1,
    }

    model = from_gguf(gguf("granitehybrid", block_count=2, **keys))
    stranger = from_gguf(gguf("somethingnew", block_count=2, **keys))

    assert model.layers == (Layer(state_elements=248), Layer(32, 32))
    assert stranger.layers == (Layer(state_elements=248), Layer(32, 32, state_elements=248))


def test_blocks_without_a_cache_of_their_own_do_not_count() -> None:
    """Blocks that predict several tokens ahead, and layers that use the keys of earlier ones."""
    keys = {**PLAIN, "nextn_predict_layers": 1, "attention__shared_kv_layers": 2}

    model = from_gguf(gguf("llama", block_count=5, **keys))

    assert [layer.key_elements for layer in model.layers] == [32, 32, 0, 0]


def test_an_unknown_architecture_is_a_bound_and_says_so() -> None:
    """Full attention in every layer, whatever window it states."""
    strange = from_gguf(gguf("new", block_count=2, attention__sliding_window=8, **PLAIN))
    config = {**models.GEMMA_3_1B, "model_type": "gemma9"}
    stranger = from_hf_config(config)

    for model, name in ((strange, "new"), (stranger, "gemma9")):
        assert not model.exact
        assert name in model.note
        assert set(windows(model)) == {None}


def test_a_nested_text_config_goes_over_what_is_around_it() -> None:
    """Models that also see keep their language part in a table of its own."""
    nested = {"model_type": "gemma3", "hidden_size": 1, "text_config": models.GEMMA_3_1B}

    assert from_hf_config(nested) == from_hf_config(models.GEMMA_3_1B)


GOOD = gguf("llama", block_count=2, **PLAIN)
HF_GOOD = {"model_type": "llama", **models.LLAMA_3_8B}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("general.architecture", {"general.architecture": None}),
        ("llama.block_count", {"llama.block_count": None}),
        ("llama.block_count", {"llama.block_count": 0}),
        ("llama.block_count", {"llama.block_count": 5_000}),
        ("llama.block_count", {"llama.nextn_predict_layers": 2}),
        ("llama.attention.head_count", {"llama.attention.head_count": 0}),
        ("llama.attention.head_count", {"llama.attention.head_count": "4"}),
        ("llama.attention.head_count_kv", {"llama.attention.head_count_kv": [1]}),
        ("llama.attention.head_count_kv", {"llama.attention.head_count_kv": [1, -1]}),
        ("llama.attention.head_count_kv", {"llama.attention.head_count_kv": True}),
        ("llama.embedding_length", {"llama.embedding_length": 1 << 40}),
    ],
)
def test_a_bad_key_of_a_gguf_file_is_named(field: str, change: dict[str, object]) -> None:
    """Missing, of another kind, too large, or too short a list."""
    with pytest.raises(DimensionsError) as refused:
        from_gguf({**GOOD, **change})

    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("num_hidden_layers", {"num_hidden_layers": None}),
        ("num_attention_heads", {"num_attention_heads": 0}),
        ("hidden_size", {"hidden_size": None}),
        ("hidden_size", {"hidden_size": 4096.0}),
        ("num_key_value_heads", {"num_key_value_heads": [8] * 31}),
        (
            "layer_types",
            {"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"]},
        ),
    ],
)
def test_a_bad_key_of_a_config_is_named(field: str, change: dict[str, object]) -> None:
    """Missing, of another kind, or too short a list."""
    with pytest.raises(DimensionsError) as refused:
        from_hf_config({**HF_GOOD, **change})

    assert refused.value.field == field


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(),
    st.floats(),
    st.sampled_from(("", "8", "x")),
    st.lists(st.one_of(st.integers(-1, 9), st.booleans(), st.just("4")), max_size=4),
)


@given(st.data())
def test_no_file_makes_it_raise_anything_else(data: st.DataObject) -> None:
    """Whatever a file says: dimensions, or the one error."""
    arch = data.draw(st.sampled_from(("llama", "gemma3", "llama4", "jamba", "deepseek2", "new")))
    gguf_keys = [key.replace("llama.", f"{arch}.") for key in GOOD] + [
        f"{arch}.attention.{name}"
        for name in ("sliding_window", "sliding_window_pattern", "kv_lora_rank", "key_length_mla")
    ]
    hf_keys = [*models.GEMMA_3_1B, "text_config", "kv_lora_rank", "qk_rope_head_dim"]
    drawn: Mapping[str, object] = {
        key: data.draw(VALUES) for key in data.draw(st.sets(st.sampled_from(gguf_keys + hf_keys)))
    }

    for read, good in (
        (from_gguf, {**GOOD, "general.architecture": arch}),
        (from_hf_config, models.GEMMA_3_1B),
    ):
        with contextlib.suppress(DimensionsError):
            assert read({**good, **drawn}).layers
