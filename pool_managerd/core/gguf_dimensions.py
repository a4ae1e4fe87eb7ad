"""Dimensions of a model from the metadata of a GGUF file, as llama.cpp reads them. LO-205.

An architecture that is not listed is counted with full attention in every layer: an upper bound,
and the result says so. Old DeepSeek files without the `*_mla` keys get plain keys and values from
llama.cpp, and so they do here.

Source: llama.cpp, src/models/*.cpp (`load_arch_hparams`: which layers slide, and how far),
src/llama-hparams.cpp (`n_embd_r`, `n_embd_s`: recurrent state), src/llama-kv-cache.cpp (MLA has no
values).
"""

from collections.abc import Mapping
from dataclasses import replace

from pool_managerd.core.dimension_keys import Keys, Sliding, judged, layer_count, slides
from pool_managerd.core.kv_size import DimensionsError, Layer, ModelDimensions

# llama.cpp keeps the whole context of these, whatever window the model was trained with.
_FULL = frozenset(
    {
        "command-r", "deepseek", "deepseek2", "falcon", "gemma", "glm4", "gpt2", "gptneox",
        "granite", "granitemoe", "llama", "mpt", "olmo", "olmoe", "phi2", "phi3", "phimoe",
        "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "smollm3", "stablelm",
        "starcoder2",
    }
)  # fmt: skip
_RECURRENT = frozenset({"granitehybrid", "jamba", "mamba", "mamba2"})
_SLIDING: Mapping[str, Sliding] = {
    "afmoe": Sliding(4),
    "cohere2": Sliding(4),
    "gemma2": Sliding(2, 4_096),
    "gemma3": Sliding(6),
    "gpt-oss": Sliding(2),
    "llama4": Sliding(4, 8_192, fixed=True),
    "olmo2": Sliding(4),
}


def from_gguf(metadata: Mapping[str, object]) -> ModelDimensions:
    """Dimensions from the keys of a GGUF file. O(layers).

    Raises:
        DimensionsError: when a key is missing or cannot be; it is named.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise DimensionsError("general.architecture", "is missing")
    keys = Keys(metadata, f"{arch}.")
    # The last blocks predict several tokens ahead; they have no part in the cache.
    blocks = keys.number("block_count") - keys.number("nextn_predict_layers", default=0)
    count = layer_count(f"{arch}.block_count", blocks)
    if keys.has("attention.key_length_mla"):
        latent = keys.number("attention.kv_lora_rank", least=1)
        latent += keys.number("rope.dimension_count")
        return judged((Layer(latent),) * count, arch, known=arch in _FULL)
    known = arch in _FULL | _RECURRENT | _SLIDING.keys()
    layers = _attention(keys, count, _windows(keys, arch, count), recurrent=arch in _RECURRENT)
    state = _state_elements(keys)
    if state:
        # Of a known hybrid, the layers without heads are the recurrent ones.
        layers = [
            layer if known and layer.key_elements else replace(layer, state_elements=state)
            for layer in layers
        ]
    return judged(layers, arch, known=known)


def _attention(
    keys: Keys, count: int, windows: list[int | None], *, recurrent: bool
) -> list[Layer]:
    heads = keys.number("attention.head_count", least=0 if recurrent else 1)
    usual = keys.number("embedding_length", least=1) // heads if heads else 0
    key_length = keys.number("attention.key_length", default=usual)
    value_length = keys.number("attention.value_length", default=usual)
    swa_key = keys.number("attention.key_length_swa", default=key_length)
    swa_value = keys.number("attention.value_length_swa", default=value_length)
    kv_heads = keys.per_layer("attention.head_count_kv", count, default=heads)
    # The last layers of some models use the keys and values of earlier ones.
    own = count - keys.number("attention.shared_kv_layers", default=0)
    layers = []
    for index, (n_kv, window) in enumerate(zip(kv_heads, windows, strict=True)):
        key, value = (key_length, value_length) if window is None else (swa_key, swa_value)
        layers.append(Layer(n_kv * key, n_kv * value, window) if index < own else Layer())
    return layers


def _windows(keys: Keys, arch: str, count: int) -> list[int | None]:
    """The window of each layer, None for those that look back on everything."""
    rule, name = _SLIDING.get(arch), "attention.sliding_window"
    if rule is None:
        return [None] * count
    window = keys.number(name, default=rule.window)
    if window and rule.fixed:
        window = rule.window
    if not window:
        return [None] * count
    pattern = keys.listed(f"{name}_pattern")
    if pattern is not None:
        sliding = [bool(entry) for entry in pattern[:count]]
    else:
        period = keys.number(f"{name}_pattern", default=rule.period)
        sliding = [slides(index, period) for index in range(count)]
    sliding += [False] * (count - len(sliding))
    return [window if slid else None for slid in sliding]


def _state_elements(keys: Keys) -> int:
    """32-bit elements of a recurrent layer's state: the convolution's, and the state proper."""
    inner = keys.number("ssm.inner_size", default=0)
    state = keys.number("ssm.state_size", default=0)
    groups = keys.number("ssm.group_count", default=0)
    kernel = keys.number("ssm.conv_kernel", default=0)
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
