"""LO-205: sizes that others published or measured, from the dimensions that the models state."""

from collections.abc import Mapping

import pytest

from pool_managerd.core.gguf_dimensions import from_gguf
from pool_managerd.core.hf_dimensions import from_hf_config
from pool_managerd.core.kv_size import CacheShape, CacheType, kv_bytes, kv_bytes_per_token
from tests.unit.pool_managerd.core import models

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PER_TOKEN = [
    # "From 300 KB to 69 KB per token": https://paper-digest.app/en/papers/hn_47558733
    ("GPT-2 XL", models.GPT_2_XL, 300 * KIB),
    ("Llama-3-8B", models.LLAMA_3_8B, 128 * KIB),
    # Table 1 of https://arxiv.org/abs/2505.09343 gives these three, in units of 1000 bytes.
    ("DeepSeek-V3", models.DEEPSEEK_V3, 70_272),
    ("Qwen2.5-72B", models.QWEN_2_5_72B, 327_680),
    ("Llama-3.1-405B", models.LLAMA_3_1_405B, 516_096),
    # 320 MiB for 1,024 tokens: https://runlocalai.co/glossary/kv-cache
    ("Llama-3-70B", models.LLAMA_3_70B, 320 * KIB),
    # 0.5 GiB for 4,096 tokens: the table of
    # https://dev.to/jagmarques/kv-cache-memory-calculator-how-much-does-your-llm-actually-use-85n
    ("Mistral-7B-v0.3", models.MISTRAL_7B_V03, 128 * KIB),
    # No figure found in print; these follow from the config.json by 2 * layers * heads * width * 2.
    ("Llama-2-7B", models.LLAMA_2_7B, 512 * KIB),
    ("Qwen2.5-7B", models.QWEN_2_5_7B, 56 * KIB),
    ("Qwen3-4B", models.QWEN_3_4B, 144 * KIB),
    ("Phi-3-mini-4k", models.PHI_3_MINI_4K, 384 * KIB),
    ("Gemma-2-9B", models.GEMMA_2_9B, 336 * KIB),
    ("DeepSeek-V2-Lite", models.DEEPSEEK_V2_LITE, 27 * 576 * 2),
]


@pytest.mark.parametrize(("name", "config", "size"), PER_TOKEN)
def test_a_token_takes_what_is_published(
    name: str, config: Mapping[str, object], size: int
) -> None:
    """At 16 bits, within every window."""
    model = from_hf_config(config)

    assert (kv_bytes_per_token(model), model.exact) == (size, True), name
    assert kv_bytes(model, 1_000) == 1_000 * size


@pytest.mark.parametrize(
    ("config", "ctx_tokens", "size"),
    [
        # The window ends the growth of all layers, of every other one, or of five in six.
        (models.MISTRAL_7B_V01, 32_768, 512 * MIB),
        (models.MISTRAL_7B_V03, 32_768, 4 * GIB),
        (models.PHI_3_MINI_4K, 4_096, 2_047 * 384 * KIB),
        (models.GEMMA_2_9B, 8_192, 21 * (8_192 + 4_096) * 8 * KIB),
        (models.GEMMA_3_1B, 32_768, (4 * 32_768 + 22 * 512) * KIB),
        (models.GPT_OSS_20B, 131_072, 12 * (131_072 + 128) * 2 * KIB),
    ],
)
def test_windows_bound_the_layers_that_have_one(
    config: Mapping[str, object], ctx_tokens: int, size: int
) -> None:
    """Beyond its window a layer grows no more."""
    assert kv_bytes(from_hf_config(config), ctx_tokens) == size


def llama_cpp(batch_tokens: int, kind: CacheType = CacheType.F16, slots: int = 1) -> CacheShape:
    """The cache of llama.cpp with `--kv-unified`, or with one slot, where it is the same."""
    return CacheShape(kind, kind, slots, unified=True, batch_tokens=batch_tokens, pad_tokens=256)


@pytest.mark.parametrize(
    ("metadata", "ctx_tokens", "shape", "mib"),
    [
        # Printed by llama.cpp as "KV buffer size", full layers and sliding ones. gpt-oss-20b on an
        # Apple M5, batches of 512 and of 2048 tokens, then in q8_0 with batches of 128:
        (models.GGUF_GPT_OSS_20B, 131_072, llama_cpp(512), 3_072.00 + 18.00),
        (models.GGUF_GPT_OSS_20B, 131_072, llama_cpp(2_048), 3_072.00 + 54.00),
        (models.GGUF_GPT_OSS_20B, 8_192, llama_cpp(128, CacheType.Q8_0), 102.00 + 3.1875),
        # Gemma-2-2B with four slots that share 8,192 cells.
        (models.GGUF_GEMMA_2_2B, 2_048, llama_cpp(512, slots=4), 416.00 + 416.00),
        # 10.72 GiB at 163,840 tokens, DeepSeek-V3.2 in llama.cpp:
        # https://provide.ai/the-exact-kv-cache-usage-of-deepseek-v4/
        (models.GGUF_DEEPSEEK_V3, 163_840, llama_cpp(512), 10_980.0),
        # 128 KiB for each of 8,192 tokens.
        (models.GGUF_LLAMA_3_8B, 8_192, llama_cpp(512), 1_024.0),
    ],
)
def test_llama_cpp_allocates_what_is_predicted(
    metadata: Mapping[str, object], ctx_tokens: int, shape: CacheShape, mib: float
) -> None:
    """The numbers of its log, to the hundredth of a MiB."""
    model = from_gguf(metadata)

    assert model.exact
    assert kv_bytes(model, ctx_tokens, shape) / MIB == pytest.approx(mib, abs=0.005)


@pytest.mark.parametrize(
    ("key_type", "value_type", "mib"),
    [
        (CacheType.F16, CacheType.F16, 1_040.00),
        (CacheType.Q8_0, CacheType.Q8_0, 552.50),
        (CacheType.Q4_0, CacheType.Q4_0, 292.50),
        (CacheType.IQ4_NL, CacheType.IQ4_NL, 292.50),
        (CacheType.Q8_0, CacheType.Q4_0, 422.50),
    ],
)
def test_quantized_caches_take_what_was_measured(
    key_type: CacheType, value_type: CacheType, mib: float
) -> None:
    """A Mistral of 24B (40 layers, 8 heads of 128); the context follows from its first figure.

    Source: https://github.com/ggml-org/llama.cpp/pull/21551 (f16, q8_0, q4_0; iq4_nl in the next
    table). The last row is the mean of two, as keys and values are equally many.
    """
    model = from_gguf(
        models.gguf(
            "llama",
            block_count=40,
            embedding_length=5120,
            attention__head_count=32,
            attention__head_count_kv=8,
            attention__key_length=128,
            attention__value_length=128,
        )
    )

    assert kv_bytes(model, 6_656, CacheShape(key_type, value_type)) == mib * MIB
