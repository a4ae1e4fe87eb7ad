"""The estimate of an engine's memory beside what the engine says that it took.

ORCH-3039, ORCH-3205, LO-205. docs/memory.md has the table of what was seen.
"""

from pathlib import Path

import pytest

from tests.integration.pool_managerd.gguf_models import MODELS, SMALL, WIDE, Size
from tests.integration.pool_managerd.memory_table import MIB, compare

# Sizes are told to 0.01 MiB, one of them for each of up to five buffers.
TOLD_BYTES = 5 * MIB // 200
# Computing: never less than was taken, and not more than this part and this many bytes above it.
GRAPH_ABOVE_RATIO, GRAPH_ABOVE_BYTES = 1.15, 128 << 10


@pytest.mark.parametrize("size", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("name", MODELS)
async def test_the_estimate_is_what_the_engine_takes(name: str, size: Size, tmp_path: Path) -> None:
    """Weights, keys and values to the last told digit; computation is a close upper bound."""
    compared = await compare(name, size, tmp_path)

    weights, kv, graph = compared.pairs()
    assert weights[1] == pytest.approx(weights[0], abs=TOLD_BYTES)
    assert kv[1] == pytest.approx(kv[0], abs=TOLD_BYTES)
    assert graph[1] - TOLD_BYTES <= graph[0] <= graph[1] * GRAPH_ABOVE_RATIO + GRAPH_ABOVE_BYTES
    assert compared.info.host_bytes == pytest.approx(weights[1] + kv[1] + graph[1], abs=3)
    assert compared.info.device_bytes == ()
    assert not compared.estimate.notes


@pytest.mark.parametrize("kv_type", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
async def test_a_cache_of_fewer_bits_is_estimated_as_exactly(kv_type: str, tmp_path: Path) -> None:
    """And an engine that has one is no replica of an engine that has not."""
    compared = await compare("llama", WIDE, tmp_path, kv_type)

    _, kv, _ = compared.pairs()
    assert kv[1] == pytest.approx(kv[0], abs=TOLD_BYTES)
    assert compared.info.sampler_profile_version == f"llamacpp-1-kv-{kv_type}"


async def test_a_draft_model_is_counted_with_its_own_context(tmp_path: Path) -> None:
    """Weights and cache as exact as the model's; an engine with one is no other's replica."""
    compared = await compare("llama", WIDE, tmp_path, draft=SMALL)

    weights, kv, graph = compared.pairs()
    assert weights[1] == pytest.approx(weights[0], abs=2 * TOLD_BYTES)
    assert kv[1] == pytest.approx(kv[0], abs=2 * TOLD_BYTES)
    assert graph[1] - 2 * TOLD_BYTES <= graph[0]
    assert compared.info.sampler_profile_version == "llamacpp-1-draft"
