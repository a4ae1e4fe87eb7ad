"""Small GGUF models with random weights, of several architectures: what an engine takes for each.

A model is a table of tensors (name, numpy shape) and of keys. They are built as llama.cpp expects
them of the architecture; what they say is noise.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """Dimensions that all architectures share; `heads` x `head_dim` need not be `embedding`."""

    embedding: int = 128
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 16
    feed_forward: int = 256
    vocabulary: int = 1024
    context: int = 8192


SMALL = Size()
WIDE = Size(
    embedding=512, layers=4, heads=8, kv_heads=4, head_dim=64, feed_forward=1536, vocabulary=8192
)
_STATE, _CONV, _DT = 16, 4, 8
_KV_LORA, _Q_LORA, _ROPE, _NOPE, _VALUE = 64, 96, 16, 32, 32
_EXPERTS, _EXPERTS_USED, _EXPERT_FF = 8, 2, 64


@dataclass(frozen=True)
class Model:
    """An architecture: its own keys, and the tensors of layer `n`. `tied`: no output matrix."""

    arch: str
    keys: Callable[[Size], Mapping[str, object]]
    block: Callable[[Size, int], Mapping[str, Shape]]
    tied: bool = False


def _attention(size: Size) -> dict[str, Shape]:
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    return {
        "attn_norm.weight": (size.embedding,),
        "attn_q.weight": (queries, size.embedding),
        "attn_k.weight": (keys, size.embedding),
        "attn_v.weight": (keys, size.embedding),
        "attn_output.weight": (size.embedding, queries),
    }


def _dense(size: Size) -> dict[str, Shape]:
    return {
        "ffn_norm.weight": (size.embedding,),
        "ffn_gate.weight": (size.feed_forward, size.embedding),
        "ffn_up.weight": (size.feed_forward, size.embedding),
        "ffn_down.weight": (size.embedding, size.feed_forward),
    }


def _experts(size: Size) -> dict[str, Shape]:
    return {
        "ffn_norm.weight": (size.embedding,),
        "ffn_gate_inp.weight": (_EXPERTS, size.embedding),
        "ffn_gate_exps.weight": (_EXPERTS, _EXPERT_FF, size.embedding),
        "ffn_up_exps.weight": (_EXPERTS, _EXPERT_FF, size.embedding),
        "ffn_down_exps.weight": (_EXPERTS, size.embedding, _EXPERT_FF),
    }


def _head_norms(size: Size) -> dict[str, Shape]:
    return {"attn_q_norm.weight": (size.head_dim,), "attn_k_norm.weight": (size.head_dim,)}


def _lengths(size: Size) -> dict[str, object]:
    return {"attention.key_length": size.head_dim, "attention.value_length": size.head_dim}


def _gemma(size: Size, _layer: int) -> dict[str, Shape]:
    norms = ("post_attention_norm.weight", "post_ffw_norm.weight")
    return {**_attention(size), **_dense(size), **dict.fromkeys(norms, (size.embedding,))}


def _latent(size: Size, _layer: int) -> dict[str, Shape]:
    return {
        "attn_norm.weight": (size.embedding,),
        "attn_q_a_norm.weight": (_Q_LORA,),
        "attn_kv_a_norm.weight": (_KV_LORA,),
        "attn_q_a.weight": (_Q_LORA, size.embedding),
        "attn_q_b.weight": (size.heads * (_NOPE + _ROPE), _Q_LORA),
        "attn_kv_a_mqa.weight": (_KV_LORA + _ROPE, size.embedding),
        "attn_k_b.weight": (size.heads, _KV_LORA, _NOPE),
        "attn_v_b.weight": (size.heads, _VALUE, _KV_LORA),
        "attn_output.weight": (size.embedding, size.heads * _VALUE),
        **_dense(size),
    }


def _latent_keys(_size: Size) -> dict[str, object]:
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": _KV_LORA + _ROPE,
        "attention.value_length": _KV_LORA,
        "attention.key_length_mla": _NOPE + _ROPE,
        "attention.value_length_mla": _VALUE,
        "attention.kv_lora_rank": _KV_LORA,
        "attention.q_lora_rank": _Q_LORA,
        "rope.dimension_count": _ROPE,
        "leading_dense_block_count": 1_000,
        "expert_count": _EXPERTS,
        "expert_used_count": _EXPERTS_USED,
        "expert_feed_forward_length": _EXPERT_FF,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
    }


def _mamba(size: Size, _layer: int) -> dict[str, Shape]:
    inner = 2 * size.embedding
    return {
        "attn_norm.weight": (size.embedding,),
        "ssm_in.weight": (2 * inner, size.embedding),
        "ssm_conv1d.weight": (inner, _CONV),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (_DT + 2 * _STATE, inner),
        "ssm_dt.weight": (inner, _DT),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, _STATE),
        "ssm_d": (inner,),
        "ssm_out.weight": (size.embedding, inner),
    }


def _mamba_keys(size: Size) -> dict[str, object]:
    return {
        "ssm.conv_kernel": _CONV,
        "ssm.inner_size": 2 * size.embedding,
        "ssm.state_size": _STATE,
        "ssm.time_step_rank": _DT,
    }


def _jamba(size: Size, layer: int) -> dict[str, Shape]:
    """Every second layer attends, the others are recurrent."""
    if layer % 2:
        return {**_attention(size), **_dense(size)}
    norms: dict[str, Shape] = {
        "ssm_dt_norm.weight": (_DT,),
        "ssm_b_norm.weight": (_STATE,),
        "ssm_c_norm.weight": (_STATE,),
    }
    return {**_mamba(size, layer), **norms, **_dense(size)}


def _jamba_keys(size: Size) -> dict[str, object]:
    heads = [size.kv_heads if layer % 2 else 0 for layer in range(size.layers)]
    return {**_mamba_keys(size), "attention.head_count_kv": heads}


def _gpt_oss(size: Size, _layer: int) -> dict[str, Shape]:
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    experts = {name: shape for name, shape in _experts(size).items() if name != "ffn_norm.weight"}
    return {
        **_attention(size),
        **experts,
        "post_attention_norm.weight": (size.embedding,),
        "attn_q.bias": (queries,),
        "attn_k.bias": (keys,),
        "attn_v.bias": (keys,),
        "attn_output.bias": (size.embedding,),
        "attn_sinks.weight": (size.heads,),
        "ffn_gate_inp.bias": (_EXPERTS,),
        "ffn_gate_exps.bias": (_EXPERTS, _EXPERT_FF),
        "ffn_up_exps.bias": (_EXPERTS, _EXPERT_FF),
        "ffn_down_exps.bias": (_EXPERTS, size.embedding),
    }


def _expert_keys(size: Size) -> dict[str, object]:
    return {
        **_lengths(size),
        "expert_count": _EXPERTS,
        "expert_used_count": _EXPERTS_USED,
        "expert_feed_forward_length": _EXPERT_FF,
    }


MODELS: Mapping[str, Model] = {
    "llama": Model("llama", lambda _size: {}, lambda s, _n: {**_attention(s), **_dense(s)}),
    "qwen3": Model(
        "qwen3", _lengths, lambda s, _n: {**_attention(s), **_head_norms(s), **_dense(s)}
    ),
    "qwen3moe": Model(
        "qwen3moe", _expert_keys, lambda s, _n: {**_attention(s), **_head_norms(s), **_experts(s)}
    ),
    "gemma2": Model(
        "gemma2",
        lambda s: {
            **_lengths(s),
            "attention.sliding_window": 512,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        _gemma,
        tied=True,
    ),
    "gemma3": Model(
        "gemma3",
        lambda s: {**_lengths(s), "attention.sliding_window": 512},
        lambda s, n: {**_gemma(s, n), **_head_norms(s)},
        tied=True,
    ),
    "gpt-oss": Model(
        "gpt-oss", lambda s: {**_expert_keys(s), "attention.sliding_window": 128}, _gpt_oss
    ),
    "deepseek2": Model("deepseek2", _latent_keys, _latent),
    "mamba": Model(
        "mamba",
        lambda s: {
            **_mamba_keys(s),
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
            "feed_forward_length": 0,
        },
        _mamba,
    ),
    "jamba": Model("jamba", _jamba_keys, _jamba),
}


def write_model(path: Path, name: str, size: Size = SMALL) -> Path:
    """Writes the model called `name` of this size, and returns the path."""
    model = MODELS[name]
    writer = gguf.GGUFWriter(path, model.arch)
    _add_vocabulary(writer, size.vocabulary)
    for key, value in {**_common_keys(size), **model.keys(size)}.items():
        _add_key(writer, f"{model.arch}.{key}", value)
    for tensor, shape in _tensors(model, size):
        _add_tensor(writer, tensor, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _common_keys(size: Size) -> dict[str, object]:
    return {
        "context_length": size.context,
        "embedding_length": size.embedding,
        "block_count": size.layers,
        "feed_forward_length": size.feed_forward,
        "attention.head_count": size.heads,
        "attention.head_count_kv": size.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": size.head_dim,
        "vocab_size": size.vocabulary,
    }


def _tensors(model: Model, size: Size) -> Iterator[tuple[str, Shape]]:
    yield "token_embd.weight", (size.vocabulary, size.embedding)
    for layer in range(size.layers):
        for name, shape in model.block(size, layer).items():
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (size.embedding,)
    if not model.tied:
        yield "output.weight", (size.vocabulary, size.embedding)


def _add_tensor(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    small = len(shape) == 1 or "ssm_a" in name or "conv1d" in name or name.endswith("bias")
    weights = np.full(shape, 0.01, np.float32)
    writer.add_tensor(name, weights if small else weights.astype(np.float16))


def _add_key(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    match value:
        case list():
            writer.add_array(key, value)
        case float():
            writer.add_float32(key, value)
        case int():
            writer.add_uint32(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    tokens = [f"t{number}" for number in range(count - 2)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<s>", "</s>"])
    writer.add_token_types([1] * len(tokens) + [3, 3])
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(count - 2)
    writer.add_eos_token_id(count - 1)
