"""What engines take for a model of `config.json` and safetensors. LO-205, ORCH-3003.

An engine that preallocates (vLLM, SGLang) takes a share of each device's whole memory, and needs
that share free when it starts. Within it there must be room for the weights, for computing, and
for the keys and values of one sequence of full length. Tensor parallelism divides weights and
key-value heads over the devices; a head is never divided, and neither is a latent vector.

Others (transformers) take the weights and grow with the context.

Source: vLLM, v1/kv_cache_interface.py (bytes per block) and v1/worker/gpu_worker.py (the share must
be free); gpustack, policies/utils.py (1.2 * weights + 2 GiB, of which the 0.2 and the 2 GiB stand
here for activations and what frameworks take for themselves).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pool_managerd.core.dimension_keys import Keys
from pool_managerd.core.fit import Estimate, Need, human_bytes
from pool_managerd.core.hf_dimensions import from_hf_config
from pool_managerd.core.kv_size import CacheShape, CacheType, ModelDimensions, kv_bytes

FRAMEWORK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class HfModel:
    """A model folder as far as memory is concerned. `heads` are those of queries."""

    dimensions: ModelDimensions
    weights_bytes: int
    heads: int
    kv_head_elements: int
    latent: bool


@dataclass(frozen=True, slots=True)
class HfPlan:
    """How an engine is told to load: devices it is spread over, longest sequence in tokens.

    `share` is the part of each device that it claims (vLLM's gpu_memory_utilization); None: it
    grows as it needs.
    """

    devices: tuple[str, ...]
    ctx_tokens: int
    sequences: int = 1
    share: float | None = None
    cache_type: CacheType = CacheType.F16


def hf_model(config: Mapping[str, object], weights_bytes: int) -> HfModel:
    """What `config.json` and the sizes of the weights say.

    Raises:
        DimensionsError: when a key is missing or cannot be; it is named.
    """
    inner = config.get("text_config")
    keys = Keys({**config, **inner} if isinstance(inner, Mapping) else config)
    heads = keys.number("num_attention_heads", "n_head", least=1)
    head_dim = keys.number("head_dim", default=0)
    if not head_dim:
        head_dim = keys.number("hidden_size", "n_embd", least=1) // heads
    latent = keys.has("kv_lora_rank") and keys.has("qk_rope_head_dim")
    return HfModel(from_hf_config(config), weights_bytes, heads, head_dim, latent)


def hf_estimate(model: HfModel, plan: HfPlan, totals: Mapping[str, int | None]) -> Estimate:
    """What the engine will take of each device. `totals` are the sizes of their memories.

    Of an engine that preallocates, what its share leaves over is counted as keys and values.
    """
    needs = {}
    for device in plan.devices:
        least = _least(model, plan)
        total = totals.get(device)
        if plan.share is not None and total is not None:
            claim = int(total * plan.share)
            least = replace(
                least, kv=max(least.kv, claim - least.weights - least.graph - least.context)
            )
        needs[device] = least
    notes = (model.dimensions.note,) if model.dimensions.note else ()
    return Estimate(needs, notes)


def hf_shortfalls(
    model: HfModel, plan: HfPlan, totals: Mapping[str, int | None]
) -> tuple[str, ...]:
    """What no amount of free memory would cure, one sentence each."""
    found = []
    ways = len(plan.devices)
    if ways and model.heads % ways:
        found.append(
            f"{ways} devices do not divide the {model.heads} attention heads of the model; use a "
            "number of devices that does"
        )
    if plan.share is None:
        return tuple(found)
    least = _least(model, plan).total
    for device in plan.devices:
        total = totals.get(device)
        if total is not None and least > int(total * plan.share):
            found.append(
                f"{device} has {human_bytes(total)}, of which a share of {plan.share:.2f} is "
                f"{human_bytes(int(total * plan.share))}, but weights, computation and one "
                f"sequence of {plan.ctx_tokens} tokens need {human_bytes(least)}; use a shorter "
                "context, more devices, or a larger share"
            )
    return tuple(found)


def _least(model: HfModel, plan: HfPlan) -> Need:
    ways = max(1, len(plan.devices))
    weights = -(-model.weights_bytes // ways)
    sequences = 1 if plan.share is not None else plan.sequences
    shape = CacheShape(plan.cache_type, plan.cache_type, sequences=sequences)
    kv = kv_bytes(_divided(model, ways), plan.ctx_tokens, shape)
    return Need(weights, kv, graph=weights // 5, context=FRAMEWORK_BYTES)


def _divided(model: HfModel, ways: int) -> ModelDimensions:
    if model.latent:
        return model.dimensions
    return replace(
        model.dimensions,
        layers=tuple(
            replace(
                layer,
                key_elements=_share(layer.key_elements, ways, model.kv_head_elements),
                value_elements=_share(layer.value_elements, ways, model.kv_head_elements),
            )
            for layer in model.dimensions.layers
        ),
    )


def _share(elements: int, ways: int, head: int) -> int:
    """Elements of whole heads on the device that has most of them."""
    return -(-elements // (head * ways)) * head if elements else 0
