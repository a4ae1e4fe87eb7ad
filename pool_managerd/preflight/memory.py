"""What the engine of a pool will take of each memory, and what to change when it is too much.

LO-205, ORCH-3003.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from pool_managerd.config.engines import EngineTable, MockTable, OpenAiTable
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import EmbeddedTable, LlamaServerTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.fit import HOST, Claim, Estimate, Need, Room, shortfalls
from pool_managerd.core.gguf_fit import PAD_TOKENS, GgufModel, LoadPlan, gguf_estimate, with_draft
from pool_managerd.core.hf_fit import HfPlan, hf_estimate, hf_shortfalls
from pool_managerd.core.kv_size import CacheType, DimensionsError
from pool_managerd.devices.cpu import DEVICE_ID as CPU_DEVICE_ID
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.gguf_kv import read_model
from pool_managerd.engines.gguf_metadata import CutOffError, MetadataError
from pool_managerd.engines.hf_folder import read_hf_folder

LlamaCpp = EmbeddedTable | LlamaServerTable | OpenAiTable
"""Engines that load a GGUF file, the last with the flavor `llama_cpp`."""

SERVER_BATCH_TOKENS = 512
"""Source: llama.cpp, common/common.h, `n_ubatch`: what llama-server computes at a time."""
HF_FLAVORS = frozenset({"vllm", "sglang", "tgi", "transformers"})
"""Servers that load folders of config.json and safetensors."""
GROWS = "transformers"
"""The flavor that takes memory as it needs it, instead of a share of the device."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """An estimate, and who says what to change when it is too much. ORCH-3205.

    `impossible` are sentences about what no amount of free memory would cure.
    """

    estimate: Estimate
    advise: Callable[[], str]
    impossible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why nobody can tell what an engine takes, in one sentence."""

    why: str


def attached(engine: EngineTable) -> bool:
    """True for an engine that runs already: it has what it takes."""
    return isinstance(engine, AttachingTable) and engine.launch is None


def plan_memory(
    table: PoolTable, rooms: Mapping[str, Room], claims: Mapping[str, tuple[Claim, ...]]
) -> MemoryPlan | Unknown | None:
    """What a pool's engine will take; None when it takes nothing that would have to be asked for.

    Blocks for the metadata of its model. `claims` are those of the other pools.
    """
    try:
        estimated = _estimated(table, rooms, claims)
    except CutOffError as error:
        return MemoryPlan(Estimate({}), str, (str(error),))
    except (MetadataError, DimensionsError, OSError) as error:
        return Unknown(f"what the engine takes is not known: {error}")
    if estimated is not None:
        return estimated
    stated = _stated(table, rooms)
    if stated is not None:
        return MemoryPlan(stated, lambda: "lower the pool's vram_claim, or use another device")
    if attached(table.engine) or isinstance(table.engine, MockTable):
        return None
    return Unknown("what the engine takes is not known: vram_claim_bytes would say it")


def _estimated(
    table: PoolTable, rooms: Mapping[str, Room], claims: Mapping[str, tuple[Claim, ...]]
) -> MemoryPlan | None:
    """By the model, unless the operator says it, or there is too little to go by."""
    engine = table.engine
    if table.vram_claim_bytes is not None or attached(engine):
        return None
    if isinstance(engine, OpenAiTable) and engine.flavor in HF_FLAVORS and _is_folder(engine):
        return _hf(table, engine, rooms)
    if table.vram_claim_ratio is not None:
        return None
    return _gguf(table, engine, rooms, claims) if _loads_gguf(engine) else None


def _loads_gguf(engine: EngineTable) -> TypeGuard[LlamaCpp]:
    """Whether the engine is a llama.cpp of which enough is stated."""
    if isinstance(engine, LlamaServerTable | OpenAiTable):
        return engine.llama_cpp and bool(engine.slot_tokens and engine.model_path)
    return isinstance(engine, EmbeddedTable)


def _is_folder(engine: OpenAiTable) -> bool:
    return bool(engine.model_path) and Path(engine.model_path).is_dir()


def _gguf(
    table: PoolTable,
    engine: LlamaCpp,
    rooms: Mapping[str, Room],
    claims: Mapping[str, tuple[Claim, ...]],
) -> MemoryPlan:
    model = _read(engine.model_path)
    draft = _read(engine.draft_model_path) if engine.draft_model_path else None
    plan = _plan(table, engine, rooms)
    ctx_key = "ctx_max" if isinstance(engine, OpenAiTable) else "ctx_per_slot"

    def estimate(changed: LoadPlan) -> Estimate:
        found = gguf_estimate(model, changed)
        return found if draft is None else with_draft(found, draft, changed)

    def fits(changed: LoadPlan) -> bool:
        return not shortfalls(estimate(changed), rooms, claims)

    return MemoryPlan(estimate(plan), lambda: _advice(model, plan, fits, ctx_key))


def _read(path: str) -> GgufModel:
    try:
        return read_model(Path(path))
    except CutOffError as error:
        raise CutOffError(f"model file {path} {error}: copy or fetch it again") from error


def _hf(table: PoolTable, engine: OpenAiTable, rooms: Mapping[str, Room]) -> MemoryPlan:
    """Of a folder: spread over all devices of the pool, as tensor parallelism does it."""
    model = read_hf_folder(Path(engine.model_path))
    devices = tuple(place for place in rooms if place != HOST) or (HOST,)
    plan = HfPlan(
        devices,
        ctx_tokens=engine.ctx_max,
        sequences=engine.slots or 1,
        share=table.vram_claim_ratio,
    )
    totals = {device: rooms[device].total for device in devices}
    estimate = hf_estimate(model, plan, totals)
    unsaid = []
    if not engine.ctx_max:
        unsaid.append("without keys and values: ctx_max is not stated")
    if table.vram_claim_ratio is None and engine.flavor != GROWS:
        unsaid.append("the server may take a larger share: vram_claim_ratio would say it")
    return MemoryPlan(
        replace(estimate, notes=(*estimate.notes, *unsaid)),
        lambda: "use a shorter context, more or other devices, or a smaller vram_claim_ratio",
        # Layers as a whole lie on one device or another where no head is divided.
        () if engine.flavor == GROWS else hf_shortfalls(model, plan, totals),
    )


def memory_of(device: Device) -> str:
    """The memory that a device uses: its own, or the host's where they are one. LO-205."""
    shared = device.kind is DeviceKind.CPU or device.memory_is_host_memory
    return HOST if shared else device.device_id


def _advice(
    model: GgufModel, plan: LoadPlan, fits: Callable[[LoadPlan], bool], ctx_key: str
) -> str:
    """What to change so that the engine fits: what helps by itself first. O(log) estimates."""
    slots = _most(plan.slots - 1, lambda count: fits(_with_slots(plan, count)))
    if slots:
        return f"slots = {slots} would fit instead of {plan.slots}, or use another device"
    for base, words in ((plan, ""), (_with_slots(plan, 1), "slots = 1 and ")):
        ctx_tokens = _longest(base, fits)
        if ctx_tokens:
            return f"{words}{ctx_key} = {ctx_tokens} would fit, or use another device"
    for kind in (CacheType.Q8_0, CacheType.Q4_0):
        smaller = kind.row_bytes(32) < plan.type_k.row_bytes(32)
        if smaller and fits(replace(plan, type_k=kind, type_v=kind)):
            return f'kv_type = "{kind.value[0]}" would fit, or use another device'
    if plan.gpu_layers:
        layers = model.layer_count + 1
        most = layers if plan.gpu_layers < 0 else min(plan.gpu_layers, layers)
        found = _most(most - 1, lambda count: fits(replace(plan, gpu_layers=count)))
        if found:
            return f"gpu_layers = {found} would fit, or use another device"
    return "use another device, or a model file of fewer bits or parameters"


def _with_slots(plan: LoadPlan, slots: int) -> LoadPlan:
    """A batch holds the next token of each slot: fewer slots make it smaller."""
    return replace(plan, slots=slots, batch_tokens=plan.batch_tokens - plan.slots + slots)


def _longest(plan: LoadPlan, fits: Callable[[LoadPlan], bool]) -> int:
    """The longest context that fits, 0 for none."""
    steps = (plan.ctx_per_slot - 1) // PAD_TOKENS
    return PAD_TOKENS * _most(
        steps, lambda count: fits(replace(plan, ctx_per_slot=count * PAD_TOKENS))
    )


def _most(highest: int, works: Callable[[int], bool]) -> int:
    """The largest number up to `highest` that works, where smaller ones do too; 0 for none."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _plan(table: PoolTable, engine: LlamaCpp, rooms: Mapping[str, Room]) -> LoadPlan:
    devices = [place for place in rooms if place not in (HOST, CPU_DEVICE_ID)]
    stated = dict(zip(table.devices, table.tensor_split, strict=False))
    shares = {
        device: stated.get(device, 0) if stated else (rooms[device].free or 1) for device in devices
    }
    slots = engine.slots or 1
    batch, ctx_tokens, projector_bytes = SERVER_BATCH_TOKENS, 0, 0
    if isinstance(engine, EmbeddedTable):
        batch, ctx_tokens = batch_tokens(slots, engine.gpu_layers), engine.ctx_per_slot
    else:
        ctx_tokens = engine.slot_tokens
        projector_bytes = Path(engine.mmproj_path).stat().st_size if engine.mmproj_path else 0
    return LoadPlan(
        slots=slots,
        ctx_per_slot=ctx_tokens,
        batch_tokens=batch,
        gpu_layers=engine.gpu_layers,
        shares=shares if engine.gpu_layers else {},
        type_k=CacheType.named(engine.kv_type),
        type_v=CacheType.named(engine.kv_type),
        extra_bytes=projector_bytes,
    )


def _stated(table: PoolTable, rooms: Mapping[str, Room]) -> Estimate | None:
    """What the operator says that the engine takes, by device; None when nothing is said."""
    devices = [place for place in rooms if place != HOST] or [HOST]
    if table.vram_claim_ratio is not None:
        shares = {d: int((rooms[d].total or 0) * table.vram_claim_ratio) for d in devices}
    elif table.vram_claim_bytes is not None:
        stated = dict(zip(table.devices, table.tensor_split, strict=False))
        weights = {d: stated.get(d, 0) if stated else 1 for d in devices}
        whole = sum(weights.values()) or 1
        shares = {d: table.vram_claim_bytes * weights[d] // whole for d in devices}
    else:
        return None
    needs = {device: Need(weights=size) for device, size in shares.items()}
    return Estimate(needs, ("as the configuration states",), stated=True)


def device_name(device: Device) -> str:
    """What people call it."""
    if device.kind is DeviceKind.CPU:
        return "the host"
    number = f"GPU {device.index}" if device.index is not None else device.device_id
    return f"{number} ({device.name})" if device.name else number
