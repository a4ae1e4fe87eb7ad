"""What engines take that read config.json: shares, tensor parallelism. LO-205, ORCH-3003."""

from collections.abc import Mapping

import pytest

from pool_managerd.core.hf_fit import (
    FRAMEWORK_BYTES,
    HfModel,
    HfPlan,
    hf_estimate,
    hf_model,
    hf_shortfalls,
)

GIB = 1 << 30
# Llama 3 8B as published.
LLAMA: Mapping[str, object] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4_096,
}
LLAMA_BYTES = 16_060_522_240
TOKEN_BYTES = 2 * 32 * 8 * 128 * 2


def llama() -> HfModel:
    """The model."""
    return hf_model(LLAMA, LLAMA_BYTES)


@pytest.mark.parametrize(("ways", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_tensor_parallelism_divides_heads_but_never_one(ways: int, heads: int) -> None:
    """Beyond the number of heads each device holds one in full."""
    plan = HfPlan(tuple(f"g{n}" for n in range(ways)), ctx_tokens=1_000)

    need = hf_estimate(llama(), plan, {}).needs["g0"]

    assert need.kv == 1_000 * TOKEN_BYTES * heads // 8
    assert need.weights == -(-LLAMA_BYTES // ways)
    assert need.context == FRAMEWORK_BYTES


def test_an_engine_that_preallocates_takes_its_share_whole() -> None:
    """Of 80 GiB at 0.9 it takes 72, whatever the model's size."""
    plan = HfPlan(("g",), ctx_tokens=8_192, share=0.9)

    need = hf_estimate(llama(), plan, {"g": 80 * GIB}).needs["g"]

    assert need.total == int(80 * GIB * 0.9)
    assert not hf_shortfalls(llama(), plan, {"g": 80 * GIB})


def test_a_share_that_holds_no_full_sequence_is_named() -> None:
    """24 GiB at 0.9 hold an 8B model with a short context and not with a long one."""
    long = HfPlan(("g",), ctx_tokens=131_072, share=0.9)

    (sentence,) = hf_shortfalls(llama(), long, {"g": 24 * GIB})

    assert "g has 24.0 GiB, of which a share of 0.90 is 21.6 GiB" in sentence
    assert "one sequence of 131072 tokens need 35.9 GiB" in sentence
    assert not hf_shortfalls(llama(), HfPlan(("g",), 8_192, share=0.9), {"g": 24 * GIB})


def test_heads_that_devices_cannot_divide_are_named() -> None:
    """An engine refuses them only after it has started."""
    plan = HfPlan(("a", "b", "c"), ctx_tokens=10)

    (sentence,) = hf_shortfalls(llama(), plan, {})

    assert "3 devices do not divide the 32 attention heads" in sentence


def test_a_latent_vector_is_on_every_device() -> None:
    """MLA caches one vector per token: there is nothing to divide."""
    config = {**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}

    one = hf_estimate(hf_model(config, 1), HfPlan(("a",), 100), {}).needs["a"].kv
    four = hf_estimate(hf_model(config, 1), HfPlan(tuple("abcd"), 100), {}).needs["a"].kv

    assert one == four == 100 * 32 * 576 * 2


def test_an_unknown_model_type_is_a_bound_and_says_so() -> None:
    """LO-205."""
    estimate = hf_estimate(hf_model({**LLAMA, "model_type": "new"}, 1), HfPlan(("a",), 1), {})

    assert "'new' is not known" in estimate.notes[0]
