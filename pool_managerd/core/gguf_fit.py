"""What llama.cpp takes in the memory of each device for a GGUF file. LO-205, ORCH-3003.

    place(layer n of N) = host                                 n < N + 1 - gpu_layers
                        = the device whose share of the split covers the layer, otherwise
    weights = bytes of the tensors of the place's layers; the output matrix counts as layer N, the
              token embedding stays with the host, and once more with the output where that is tied
    kv      = kv_size, of the place's layers
    graph   = graph_size, for each place that has layers
    context = what driver and libraries take for a process

Source: llama.cpp, src/llama-model.cpp, `load_tensors` (`i_gpu_start`, `splits`). Shares without a
split follow free memory, as there. Context of a GPU: ollama, `MinimumMemory`, 457 MiB; of the
process: gguf-parser, `--platform-footprint`, 150 MiB.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby

from pool_managerd.core.dimension_keys import LAYERS_MAX
from pool_managerd.core.fit import HOST, Estimate, LayerRun, Need
from pool_managerd.core.gguf_dimensions import from_gguf
from pool_managerd.core.graph_size import (
    PIPELINE_COPIES,
    GraphDimensions,
    Tensor,
    graph_bytes,
    graph_dimensions,
)
from pool_managerd.core.kv_size import (
    CacheShape,
    CacheType,
    DimensionsError,
    ModelDimensions,
    kv_bytes_by_layer,
)

PAD_TOKENS = 256
"""Cells come in multiples of it. Source: llama.cpp, `llama_context` (`GGML_PAD(n_ctx, 256)`)."""
GPU_CONTEXT_BYTES = 457 << 20
PROCESS_BYTES = 150 << 20


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file as far as memory is concerned."""

    dimensions: ModelDimensions
    graph: GraphDimensions
    tensors: tuple[Tensor, ...]

    @property
    def layer_count(self) -> int:
        """Layers, those that only predict ahead among them."""
        return max((t.layer + 1 for t in self.tensors if t.layer is not None), default=0)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a llama.cpp is told to load a model.

    `gpu_layers` -1 means all. `shares` are the devices that it sees, in its order, with their part
    of the layers (any unit). `batch_tokens` are computed at a time. `extra_bytes` are files that
    the first device loads besides, such as a projector or a draft model.
    """

    slots: int
    ctx_per_slot: int
    batch_tokens: int
    gpu_layers: int = 0
    shares: Mapping[str, int] = field(default_factory=dict)
    type_k: CacheType = CacheType.F16
    type_v: CacheType = CacheType.F16
    flash: bool = True
    extra_bytes: int = 0


def gguf_model(metadata: Mapping[str, object], tensors: tuple[Tensor, ...]) -> GgufModel:
    """What a file says.

    Raises:
        DimensionsError: when a key is missing or cannot be, or no model has so many layers as
            tensors say; it is named.
    """
    last = max((t.layer for t in tensors if t.layer is not None), default=0)
    if last >= LAYERS_MAX:
        raise DimensionsError(f"blk.{last}"[:40], f"is a layer beyond {LAYERS_MAX}")
    return GgufModel(from_gguf(metadata), graph_dimensions(metadata, tensors), tensors)


def gguf_estimate(model: GgufModel, plan: LoadPlan) -> Estimate:
    """What the engine will take, by place. O(tensors + layers)."""
    places = _places(model.layer_count, plan)
    needs: dict[str, Need] = {HOST: Need(context=PROCESS_BYTES)}
    for place in places:
        if place != HOST:
            needs.setdefault(place, Need(context=GPU_CONTEXT_BYTES))
    _add(needs, _weights(model, places))
    shape = CacheShape(
        plan.type_k,
        plan.type_v,
        sequences=plan.slots,
        batch_tokens=plan.batch_tokens,
        pad_tokens=PAD_TOKENS,
    )
    ctx_tokens = -(-plan.ctx_per_slot // PAD_TOKENS) * PAD_TOKENS
    kv = kv_bytes_by_layer(model.dimensions, ctx_tokens, shape)
    for place, size in zip(places, kv, strict=False):
        _add(needs, {place: Need(kv=size)})
    several = len(set(places) - {HOST}) > 1 and HOST not in places
    graph = graph_bytes(
        model.graph,
        model.dimensions,
        ctx_tokens,
        shape,
        flash=plan.flash,
        copies=PIPELINE_COPIES if several else 1,
    )
    _add(needs, {place: Need(graph=graph) for place in set(places)})
    # Where the logits of each sequence are handed over.
    _add(needs, {HOST: Need(graph=plan.slots * model.graph.vocabulary * 4)})
    if plan.extra_bytes:
        _add(needs, {next(iter(plan.shares), HOST): Need(weights=plan.extra_bytes)})
    notes = (model.dimensions.note,) if model.dimensions.note else ()
    return Estimate(needs, notes, layers=_runs(places))


def with_draft(estimate: Estimate, draft: GgufModel, plan: LoadPlan) -> Estimate:
    """The estimate with a draft model: as many layers on devices as there are, keys and values f16.

    Its weights count once, its context and computation for each slot. O(tensors + layers).
    """
    own = replace(
        plan,
        slots=1,
        gpu_layers=-1,
        type_k=CacheType.F16,
        type_v=CacheType.F16,
        extra_bytes=0,
    )
    one = gguf_estimate(draft, own)
    needs = dict(estimate.needs)
    for place, need in one.needs.items():
        # The process is there already, but perhaps not on this device.
        context = 0 if place in needs else need.context
        more = Need(need.weights, need.kv * plan.slots, need.graph * plan.slots, context)
        _add(needs, {place: more})
    return replace(estimate, needs=needs, notes=(*estimate.notes, *one.notes))


def _places(layers: int, plan: LoadPlan) -> list[str]:
    """The place of each layer, and of the output after them."""
    asked = layers + 1 if plan.gpu_layers < 0 else plan.gpu_layers
    on_gpu = min(asked, layers + 1) if plan.shares else 0
    names, ends = list(plan.shares), list(accumulate(plan.shares.values()))
    places = [HOST] * (layers + 1 - on_gpu)
    for number in range(on_gpu):
        # The first share whose end lies above number / on_gpu of the whole.
        index = bisect_right(ends, number * ends[-1] // on_gpu) if ends[-1] else 0
        places.append(names[min(index, len(names) - 1)])
    return places


def _runs(places: list[str]) -> tuple[LayerRun, ...]:
    """What `_places` says, in runs: its last entry is the output."""
    runs, first = [], 0
    for place, layers in groupby(places[:-1]):
        count = len(list(layers))
        runs.append(LayerRun(place, first, count))
        first += count
    if runs and runs[-1].place == places[-1]:
        runs[-1] = replace(runs[-1], output=True)
    else:
        runs.append(LayerRun(places[-1], first, 0, output=True))
    return tuple(runs)


def _weights(model: GgufModel, places: list[str]) -> dict[str, Need]:
    sizes: dict[str, int] = {}
    output, tied = places[-1], True
    embedding = 0
    for tensor in model.tensors:
        if tensor.layer is not None:
            place = places[tensor.layer]
        elif tensor.name.startswith("output"):
            place = output
            tied = tied and tensor.name != "output.weight"
        else:
            place = HOST
            embedding += tensor.size_bytes if tensor.name == "token_embd.weight" else 0
        sizes[place] = sizes.get(place, 0) + tensor.size_bytes
    if tied and output != HOST:
        sizes[output] = sizes.get(output, 0) + embedding
    return {place: Need(weights=size) for place, size in sizes.items()}


def _add(needs: dict[str, Need], more: Mapping[str, Need]) -> None:
    for place, need in more.items():
        needs[place] = needs.get(place, Need()).plus(need)
