"""Model x device x quantization x context: what each pool offers, what each job asks.

Pools are made as in production: dimensions from GGUF metadata, sizes by the pool manager's helper,
a snapshot on the wire, parsed by orchestratord.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.feasibility import kv_needed_bytes, lasting_shortfalls
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.wire.snapshots import parse_snapshot
from pool_managerd.core.gguf_dimensions import from_gguf
from pool_managerd.core.kv_size import CacheShape, CacheType, kv_bytes, kv_bytes_per_token
from pool_managerd.engines.port import EngineInfo
from pool_managerd.snapshots import add_kv
from tests.unit.pool_managerd.core import models

GIB = 1 << 30
CTX_MAX = 32_768
SLOTS = 2
BATCH_TOKENS, PAD_TOKENS = 256, 256
MODELS = {
    "llama-3-8b": models.GGUF_LLAMA_3_8B,
    "gemma-2-2b": models.GGUF_GEMMA_2_2B,
    "gpt-oss-20b": models.GGUF_GPT_OSS_20B,
    "deepseek-v3": models.GGUF_DEEPSEEK_V3,
}
# Devices of a pool, with memory in GiB and weight in the split; their lowest compute capability.
FLEET: dict[str, tuple[dict[str, tuple[int, int]], str]] = {
    "cpu": ({"cpu": (0, 0)}, ""),
    "3060": ({"GPU-3060": (12, 0)}, "8.6"),
    "thor": ({"GPU-thor": (24, 0)}, "8.10"),
    "h100": ({"GPU-h100": (80, 0)}, "9.0"),
    "two": ({"GPU-3090": (24, 0), "GPU-3060": (12, 0)}, "8.6"),
    "even": ({"GPU-3090": (24, 1), "GPU-3060": (12, 1)}, "8.6"),
    "fair": ({"GPU-3090": (24, 2), "GPU-3060": (12, 1)}, "8.6"),
}
QUANTIZATIONS = ("Q4_K_M", "F16")
CACHES = (CacheType.F16, CacheType.Q8_0, CacheType.Q4_0)
CONTEXTS = (None, 2_048, 32_768, 131_072)
MIN_VRAM_GIB = (None, 20, 30)
MIN_CAPS = (None, (8, 9), (9, 0))
MASKS = ((), ("GPU-3090", "GPU-3060"), ("GPU-3060",))
PREALLOCATED = (False, True)
# Without sliding windows the bytes of a token say it all, so a pool need not state a slot's.
PLAIN = frozenset({"llama-3-8b", "deepseek-v3"})


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the matrix."""

    model: str
    pool: str
    cache: CacheType
    preallocated: bool
    quantization: str
    required_ctx: int | None
    min_vram_gib: int | None
    min_cap: tuple[int, int] | None
    mask: tuple[str, ...]


def cells(model: str) -> Iterator[Cell]:
    """Every entry of one model; each pool offers Q4_K_M alone."""
    rest = product(
        FLEET, CACHES, PREALLOCATED, QUANTIZATIONS, CONTEXTS, MIN_VRAM_GIB, MIN_CAPS, MASKS
    )
    for entry in rest:
        yield Cell(model, *entry)


def pool(model: str, name: str, cache: CacheType, *, preallocated: bool) -> PoolSnapshot:
    """The pool as orchestratord sees it."""
    devices, capability = FLEET[name]
    message = snapshot_pb2.PoolSnapshot(
        pool_id=f"{name}-{cache.name}",
        replica_id="r",
        host_id="h",
        model_id=model,
        engine="llamacpp",
        slots_total=SLOTS,
        slots_free=SLOTS,
        ctx_max=CTX_MAX,
        state=snapshot_pb2.POOL_STATE_READY,
    )
    message.supports.quantizations.append("Q4_K_M")
    for device_id, (gib, weight) in devices.items():
        device = message.devices.add(device_id=device_id)
        if gib:
            device.memory_total_bytes = gib * GIB
        if any(of_all for _, of_all in devices.values()):
            device.tensor_split = weight
    total = sum(gib for gib, _ in devices.values()) * GIB
    if total:
        message.vram_total_bytes = message.vram_free_bytes = total
    if capability:
        message.compute_capability = capability
    dimensions = from_gguf(MODELS[model])
    shape = CacheShape(cache, cache, batch_tokens=BATCH_TOKENS, pad_tokens=PAD_TOKENS)
    info = EngineInfo(
        "llamacpp",
        "1",
        model,
        "",
        "",
        SLOTS,
        CTX_MAX,
        kv_preallocated=preallocated,
        kv_bytes_per_token=kv_bytes_per_token(dimensions, shape),
        kv_slot_bytes=(
            kv_bytes(dimensions, CTX_MAX, shape) if preallocated or model not in PLAIN else None
        ),
    )
    add_kv(message, info)
    snapshot = parse_snapshot(message)
    assert isinstance(snapshot, PoolSnapshot), snapshot
    return snapshot


def job(cell: Cell) -> JobSpec:
    """The job of an entry."""
    needs = Needs(
        model_id=cell.model,
        quantization=cell.quantization,
        required_ctx=cell.required_ctx,
        min_vram_bytes=None if cell.min_vram_gib is None else cell.min_vram_gib * GIB,
        min_compute_cap=cell.min_cap,
        device_mask=cell.mask,
    )
    return JobSpec("j", needs)


def fleet(model: str) -> dict[tuple[str, CacheType, bool], PoolSnapshot]:
    """All pools of one model, by name, type of cache, and whether its memory is taken."""
    return {
        (name, cache, taken): pool(model, name, cache, preallocated=taken)
        for name, cache, taken in product(FLEET, CACHES, PREALLOCATED)
    }


def verdicts(model: str) -> list[tuple[Cell, int | None, frozenset[str]]]:
    """For each entry the size of keys and values, and the reasons against it; none: feasible."""
    pools = fleet(model)
    found = []
    for cell in cells(model):
        asked, offered = job(cell), pools[cell.pool, cell.cache, cell.preallocated]
        reasons = frozenset(s.reason.value for s in lasting_shortfalls(asked, offered))
        found.append((cell, kv_needed_bytes(asked, offered), reasons))
    return found


def digest() -> str:
    """The texts of all shortfalls of one model as one number, for other processes."""
    told, model = hashlib.sha256(), "llama-3-8b"
    pools = fleet(model)
    for cell in cells(model):
        offered = pools[cell.pool, cell.cache, cell.preallocated]
        told.update(repr(lasting_shortfalls(job(cell), offered)).encode())
    return told.hexdigest()
