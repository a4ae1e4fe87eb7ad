# ruff: noqa: T201 - it prints a table
"""Estimates beside what the embedded engine reports, for each architecture.

`python -m tests.integration.pool_managerd.memory_table` prints the table of docs/memory.md.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pool_managerd.core.fit import HOST, Estimate
from pool_managerd.core.gguf_fit import LoadPlan, gguf_estimate, with_draft
from pool_managerd.core.kv_size import CacheType
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.gguf_kv import read_model
from pool_managerd.engines.llama_memory import MemoryLog
from pool_managerd.engines.port import EngineInfo
from tests.integration.pool_managerd.gguf_models import MODELS, SMALL, WIDE, Size, write_model

MIB = 1 << 20


@dataclass(frozen=True)
class Compared:
    """One model on one engine: what was expected, and what the engine says."""

    estimate: Estimate
    taken: MemoryLog
    info: EngineInfo

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Bytes expected and taken: weights, keys and values, computation."""
        need = self.estimate.needs[HOST]
        told = self.taken.purpose_bytes
        return (
            (need.weights, told("model")),
            (need.kv, told("KV") + told("RS")),
            (need.graph, told("compute") + told("output")),
        )


async def compare(
    name: str, size: Size, folder: Path, kv_type: str = "f16", draft: Size | None = None
) -> Compared:
    """Writes the model, estimates it, loads it; with a draft model of that size, if wanted."""
    slots, ctx = (2, 1_000) if size is SMALL else (4, 2_048)
    path = write_model(folder / "m.gguf", name, size)
    cache = CacheType.named(kv_type)
    plan = LoadPlan(
        slots=slots,
        ctx_per_slot=ctx,
        batch_tokens=batch_tokens(slots, 0),
        type_k=cache,
        type_v=cache,
    )
    estimate = gguf_estimate(read_model(path), plan)
    draft_path = "" if draft is None else str(write_model(folder / "d.gguf", name, draft))
    if draft_path:
        estimate = with_draft(estimate, read_model(Path(draft_path)), plan)
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model_path=path,
            model_id="m",
            slots=slots,
            ctx_per_slot=ctx,
            kv_type=kv_type,
            draft_model_path=draft_path,
        )
    )
    info = await engine.start()
    await engine.stop()
    return Compared(estimate, engine.memory, info)


async def _print_table() -> None:
    print("| architecture | size | weights | keys and values | computation |")
    print("|---|---|---|---|---|")
    for name in MODELS:
        for word, size in (("small", SMALL), ("wide", WIDE)):
            with tempfile.TemporaryDirectory() as folder:
                pairs = (await compare(name, size, Path(folder))).pairs()
            cells = [f"{expected / MIB:.2f} / {taken / MIB:.2f}" for expected, taken in pairs]
            print(f"| {name} | {word} | {' | '.join(cells)} |")


if __name__ == "__main__":
    asyncio.run(_print_table())
