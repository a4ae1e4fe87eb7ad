"""Dimensions of a model from its `config.json`. LO-205.

For engines that read such files (vLLM, SGLang, transformers). An architecture that is not listed is
counted with full attention in every layer: an upper bound, and the result says so.

Source: transformers, configuration_*.py (keys, their defaults, `layer_types`).
"""

from collections.abc import Mapping, Sequence

from pool_managerd.core.dimension_keys import Keys, Sliding, judged, layer_count, slides
from pool_managerd.core.kv_size import DimensionsError, Layer, ModelDimensions

_FULL = frozenset(
    {
        "cohere", "gemma", "glm4", "gpt2", "gpt_neox", "granite", "granitemoe", "llama", "olmo",
        "olmo2", "olmoe", "phi", "qwen2_moe", "smollm3", "stablelm",
    }
)  # fmt: skip
_SLIDING: Mapping[str, Sliding] = {
    "cohere2": Sliding(4),
    "gemma2": Sliding(2, 4_096),
    "gemma3": Sliding(6),
    "gemma3_text": Sliding(6),
    "gpt_oss": Sliding(2, 128),
    "mistral": Sliding(0),
    "mixtral": Sliding(0),
    "phi3": Sliding(0),
    "starcoder2": Sliding(0),
}
# These slide from layer `max_window_layers` on, and only when `use_sliding_window` is set.
_SLIDING_LATE = frozenset({"qwen2", "qwen3", "qwen3_moe"})
_LATENT = frozenset({"deepseek_v2", "deepseek_v3"})


def from_hf_config(config: Mapping[str, object]) -> ModelDimensions:
    """Dimensions from a `config.json`; a nested `text_config` goes over what is around it.

    Raises:
        DimensionsError: when a key is missing or cannot be; it is named.
    """
    inner = config.get("text_config")
    text: Mapping[str, object] = {**config, **inner} if isinstance(inner, Mapping) else config
    keys, kind = Keys(text), str(text.get("model_type") or "")
    count = layer_count("num_hidden_layers", keys.number("num_hidden_layers", "n_layer"))
    if keys.has("kv_lora_rank") and keys.has("qk_rope_head_dim"):
        latent = keys.number("kv_lora_rank", least=1) + keys.number("qk_rope_head_dim")
        return judged((Layer(latent),) * count, kind, known=kind in _LATENT)
    heads = keys.number("num_attention_heads", "n_head", least=1)
    head_dim = keys.number("head_dim", default=0)
    if not head_dim:
        head_dim = keys.number("hidden_size", "n_embd", least=1) // heads
    kv_heads = keys.per_layer("num_key_value_heads", count, default=heads)
    layers = [
        Layer(n_kv * head_dim, n_kv * head_dim, window)
        for n_kv, window in zip(kv_heads, _windows(keys, text, kind, count), strict=True)
    ]
    return judged(layers, kind, known=kind in _FULL | _SLIDING_LATE | _SLIDING.keys())


def _windows(keys: Keys, text: Mapping[str, object], kind: str, count: int) -> Sequence[int | None]:
    """The window of each layer, None for those that look back on everything."""
    if kind not in _SLIDING.keys() | _SLIDING_LATE:
        return (None,) * count
    rule = _SLIDING.get(kind, Sliding(1))
    # An explicit null says that nothing slides.
    absent = 0 if "sliding_window" in text else rule.window
    window = keys.number("sliding_window", default=absent)
    used = text.get("use_sliding_window", kind not in _SLIDING_LATE)
    if not window or not used:
        return (None,) * count
    return tuple(window if slid else None for slid in _sliding(keys, rule, kind, count))


def _sliding(keys: Keys, rule: Sliding, kind: str, count: int) -> Sequence[bool]:
    types = keys.listed("layer_types")
    if types is not None:
        if len(types) < count:
            raise DimensionsError("layer_types", f"has {len(types)} entries for {count} layers")
        return tuple(entry == "sliding_attention" for entry in types[:count])
    if kind in _SLIDING_LATE:
        first = keys.number("max_window_layers", default=count)
        return tuple(index >= first for index in range(count))
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    period = keys.number(*names, default=rule.period)
    return tuple(slides(index, period) for index in range(count))
