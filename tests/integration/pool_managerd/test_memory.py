"""The estimate of an engine's memory beside what the engine says that it took. ORCH-3039, LO-205.

docs/memory.md has the table of what was seen.
"""

from pathlib import Path

import pytest

from pool_managerd.core.fit import HOST
from pool_managerd.core.gguf_fit import LoadPlan, gguf_estimate
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.gguf_kv import read_model
from tests.integration.pool_managerd.gguf_models import MODELS, SMALL, WIDE, Size, write_model

STEP = 1 << 20
# Sizes are told to 0.01 MiB, one of them for each of up to five buffers.
TOLD_BYTES = 5 * STEP // 200
# Computing: never less than was taken, and not more than this part and this many bytes above it.
GRAPH_ABOVE_RATIO, GRAPH_ABOVE_BYTES = 1.15, 128 << 10


@pytest.mark.parametrize("size", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("name", MODELS)
async def test_the_estimate_is_what_the_engine_takes(name: str, size: Size, tmp_path: Path) -> None:
    """Weights, keys and values to the last told digit; computation is a close upper bound."""
    slots, ctx = (2, 1_000) if size is SMALL else (4, 2_048)
    path = write_model(tmp_path / "m.gguf", name, size)
    plan = LoadPlan(slots=slots, ctx_per_slot=ctx, batch_tokens=batch_tokens(slots, 0))

    estimate = gguf_estimate(read_model(path), plan)
    engine = EmbeddedEngine(
        EmbeddedConfig(model_path=path, model_id="m", slots=slots, ctx_per_slot=ctx)
    )
    info = await engine.start()
    await engine.stop()
    taken = engine.memory

    need = estimate.needs[HOST]
    kv = taken.purpose_bytes("KV") + taken.purpose_bytes("RS")
    graph = taken.purpose_bytes("compute") + taken.purpose_bytes("output")
    assert taken.purpose_bytes("model") == pytest.approx(need.weights, abs=TOLD_BYTES)
    assert kv == pytest.approx(need.kv, abs=TOLD_BYTES)
    assert graph - TOLD_BYTES <= need.graph <= graph * GRAPH_ABOVE_RATIO + GRAPH_ABOVE_BYTES
    assert info.host_bytes == pytest.approx(taken.purpose_bytes("model") + kv + graph, abs=3)
    assert info.device_bytes == ()
    assert not estimate.notes
