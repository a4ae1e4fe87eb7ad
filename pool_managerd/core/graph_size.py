"""Bytes of the buffers in which llama.cpp computes a batch, from the tensors of a model.

    graph  = copies * inputs + max(layer, output)
    inputs = batch * (embedding * 4 + masks) + 64 KiB of small ones; masks = 2 * cells of a
             sequence, for each kind of attention (16 bits with flash attention, else 32)
    layer  = 4 * (batch * (4 * embedding + widest) + 2 * sequences * recurrent state), widest of:
             3 * feed forward; 2 * queries + keys + values; with MLA the absorbed queries and
             outputs; 5 * inner of a recurrent layer; of experts those that are used
    output = 4 * (sequences * vocabulary + 2 * batch * embedding)

Without flash attention a layer also holds its scores: batch * heads * cells * 4.
Over several devices the inputs exist four times, so that batches can overlap.

Source: measured from the `compute buffer size` lines of xllamacpp 2026.10.11549 (llama.cpp b11549)
on a processor, for the nine architectures of `tests/integration/pool_managerd/gguf_models.py`;
docs/memory.md has the table. The copies: llama.cpp, `GGML_SCHED_MAX_COPIES`. Not measured on a GPU.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pool_managerd.core.dimension_keys import Keys
from pool_managerd.core.kv_size import CacheShape, ModelDimensions, layer_cells

PIPELINE_COPIES = 4
_F32_BYTES, _F16_BYTES = 4, 2
_SMALL_INPUTS_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model file: its name, its dimensions (the input's first), its bytes."""

    name: str
    dims: tuple[int, ...]
    size_bytes: int

    @property
    def layer(self) -> int | None:
        """Number of its layer, None outside of the layers."""
        kind, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if kind == "blk" and number.isdecimal() else None

    @property
    def role(self) -> str:
        """What it is within its layer, as "ffn_up"."""
        return self.name.removeprefix(f"blk.{self.layer}.").partition(".")[0]

    @property
    def outputs(self) -> int:
        """Elements that it makes for one token."""
        return self.dims[1] if len(self.dims) > 1 else 0


@dataclass(frozen=True, slots=True)
class GraphDimensions:
    """Elements per token that decide the size of a graph."""

    embedding: int
    vocabulary: int
    widest: int
    heads: int


def graph_dimensions(metadata: Mapping[str, object], tensors: Iterable[Tensor]) -> GraphDimensions:
    """The dimensions of a GGUF file. O(tensors).

    Raises:
        DimensionsError: when a key is missing or cannot be; it is named.
    """
    keys = Keys(metadata, f"{metadata.get('general.architecture')}.")
    layers: dict[int, dict[str, Tensor]] = {}
    vocabulary = 0
    for tensor in tensors:
        if tensor.layer is not None and tensor.name.endswith((".weight", "ssm_a")):
            layers.setdefault(tensor.layer, {})[tensor.role] = tensor
        elif tensor.name in ("token_embd.weight", "output.weight"):
            vocabulary = max(vocabulary, tensor.outputs)
    embedding = keys.number("embedding_length", least=1)
    used = keys.number("expert_used_count", default=0)
    heads = keys.number("attention.head_count", default=0)
    widest = max((_widest(layer, embedding, used, heads) for layer in layers.values()), default=0)
    return GraphDimensions(embedding, vocabulary, widest, heads)


def _widest(layer: Mapping[str, Tensor], embedding: int, used: int, heads: int) -> int:
    def out(*roles: str) -> int:
        return max((layer[role].outputs for role in roles if role in layer), default=0)

    dense = 3 * out("ffn_up", "ffn_gate")
    shared = 3 * out("ffn_up_shexp", "ffn_gate_shexp")
    experts = out("ffn_up_exps", "ffn_gate_exps", "ffn_gate_up_exps")
    routed = used * max(3 * experts, embedding) if experts else 0
    attention = 2 * out("attn_q", "attn_q_b") + out("attn_k") + out("attn_v")
    fused = 2 * out("attn_qkv")
    latent = 0
    if "attn_k_b" in layer and "attn_kv_a_mqa" in layer:
        latent = heads * (2 * out("attn_k_b") + out("attn_kv_a_mqa"))
    inner = layer["ssm_out"].dims[0] if "ssm_out" in layer else 0
    recurrent = max(5 * inner, 2 * out("ssm_in"))
    return max(dense, shared + routed, attention, fused, latent, recurrent)


def graph_bytes(
    dimensions: GraphDimensions,
    model: ModelDimensions,
    ctx_tokens: int,
    shape: CacheShape,
    *,
    flash: bool = True,
    copies: int = 1,
) -> int:
    """Bytes that computing one batch takes on each device that has layers. O(layers)."""
    batch = shape.batch_tokens
    streams = 1 if shape.unified else shape.sequences
    kinds = {
        layer.window: layer_cells(layer, ctx_tokens, shape) // streams
        for layer in model.layers
        if layer.key_elements
    }
    cells = sum(kinds.values())
    mask = cells * (_F16_BYTES if flash else _F32_BYTES)
    inputs = batch * (dimensions.embedding * _F32_BYTES + mask) + _SMALL_INPUTS_BYTES
    scores = 0 if flash else dimensions.heads * max(kinds.values(), default=0)
    state = 2 * shape.sequences * max(layer.state_elements for layer in model.layers)
    layer_size = _F32_BYTES * (
        batch * (4 * dimensions.embedding + dimensions.widest + scores) + state
    )
    output = _F32_BYTES * (
        shape.sequences * dimensions.vocabulary + 2 * batch * dimensions.embedding
    )
    return copies * inputs + max(layer_size, output)
