"""Where llama.cpp puts the layers of a model, and what they take there. LO-205.

The sizes themselves are compared with an engine in tests/integration/pool_managerd/test_memory.py.
"""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.fit import HOST, Estimate
from pool_managerd.core.gguf_fit import (
    GPU_CONTEXT_BYTES,
    PROCESS_BYTES,
    GgufModel,
    LoadPlan,
    gguf_estimate,
    gguf_model,
)
from pool_managerd.core.graph_size import Tensor
from pool_managerd.core.kv_size import DimensionsError

LAYERS = 4
KEYS: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
# Powers of ten tell in a sum which tensors are in it.
LAYER_BYTES, EMBEDDING_BYTES, OUTPUT_BYTES = 1_000, 10, 1
KV_BYTES = 2 * 16 * 2 * 2 * 256


def model(*, tied: bool = False, keys: Mapping[str, object] = KEYS) -> GgufModel:
    """Four layers of a thousand bytes."""
    blocks = tuple(Tensor(f"blk.{n}.ffn_up.weight", (64, 128), LAYER_BYTES) for n in range(LAYERS))
    ends = [Tensor("token_embd.weight", (64, 100), EMBEDDING_BYTES)]
    if not tied:
        ends.append(Tensor("output.weight", (64, 100), OUTPUT_BYTES))
    return gguf_model(keys, (*ends, *blocks))


def plan(gpu_layers: int, **shares: int) -> LoadPlan:
    """One slot of 256 tokens."""
    return LoadPlan(
        slots=1, ctx_per_slot=256, batch_tokens=16, gpu_layers=gpu_layers, shares=shares
    )


def weights(estimate: Estimate) -> dict[str, int]:
    """Bytes of weights by place."""
    return {place: need.weights for place, need in estimate.needs.items() if need.weights}


@pytest.mark.parametrize(
    ("gpu_layers", "expected"),
    [
        (0, {HOST: 4_011}),
        (1, {HOST: 4_010, "a": 1}),
        (2, {HOST: 3_010, "a": 1_001}),
        (4, {HOST: 1_010, "a": 3_001}),
        (5, {HOST: 10, "a": 4_001}),
        (99, {HOST: 10, "a": 4_001}),
        (-1, {HOST: 10, "a": 4_001}),
    ],
)
def test_the_last_layers_go_to_the_gpu_and_the_output_first(
    gpu_layers: int, expected: dict[str, int]
) -> None:
    """The embedding always stays with the host; layer 0 is the last to move."""
    assert weights(gguf_estimate(model(), plan(gpu_layers, a=1))) == expected


def test_a_tied_output_is_there_twice_on_a_gpu() -> None:
    """llama.cpp copies the embedding where the output is computed; on the host it is the same."""
    assert weights(gguf_estimate(model(tied=True), plan(-1, a=1))) == {HOST: 10, "a": 4_010}
    assert weights(gguf_estimate(model(tied=True), plan(0))) == {HOST: 4_010}


@given(
    layers=st.integers(1, 40),
    shares=st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(sum),
    gpu_layers=st.integers(-1, 45),
)
def test_a_split_is_that_of_llama_cpp(layers: int, shares: list[int], gpu_layers: int) -> None:
    """Against its own rule, written with fractions as there: `upper_bound` over the shares."""
    keys = {**KEYS, "llama.block_count": layers}
    blocks = [Tensor(f"blk.{n}.ffn_up.weight", (64, 128), 1 << n) for n in range(layers)]
    named = {f"g{number}": share for number, share in enumerate(shares)}
    wanted: dict[str, int] = {}
    asked = layers + 1 if gpu_layers < 0 else gpu_layers
    start, count = max(layers + 1 - asked, 0), min(asked, layers + 1)
    for layer in range(layers):
        place = HOST
        if start <= layer < start + count:
            below, place = 0, "g0"
            for name, share in named.items():
                below += share
                if below * count > (layer - start) * sum(shares):
                    place = name
                    break
        wanted[place] = wanted.get(place, 0) + (1 << layer)

    estimate = gguf_estimate(gguf_model(keys, tuple(blocks)), plan(gpu_layers, **named))

    assert weights(estimate) == wanted


def test_the_plan_says_what_goes_where() -> None:
    """ORCH-3202: every layer once, in order, and the output; on the places of the weights."""

    def told(gpu_layers: int, **shares: int) -> list[tuple[str, int, int, bool]]:
        layers = gguf_estimate(model(), plan(gpu_layers, **shares)).layers
        return [(run.place, run.first, run.count, run.output) for run in layers]

    assert told(0) == [(HOST, 0, 4, True)]
    assert told(1, a=1) == [(HOST, 0, 4, False), ("a", 4, 0, True)]
    assert told(3, a=1) == [(HOST, 0, 2, False), ("a", 2, 2, True)]
    assert told(-1, a=1) == [("a", 0, 4, True)]
    assert told(-1, a=3, b=2) == [("a", 0, 3, False), ("b", 3, 1, True)]


def test_keys_and_values_lie_where_their_layer_does() -> None:
    """With each device its own context, and computation wherever there are layers."""
    needs = gguf_estimate(model(), plan(3, a=1, b=1)).needs

    assert {place: need.kv // KV_BYTES for place, need in needs.items()} == {
        HOST: 2,
        "a": 2,
        "b": 0,
    }
    assert needs["a"].context == needs["b"].context == GPU_CONTEXT_BYTES
    assert needs[HOST].context == PROCESS_BYTES
    assert needs["b"].weights == OUTPUT_BYTES
    assert all(need.graph for need in needs.values())


def test_devices_that_share_all_layers_hold_their_inputs_four_times() -> None:
    """llama.cpp lets batches overlap then, and not when the host computes as well."""
    one = gguf_estimate(model(), plan(-1, a=1)).needs["a"].graph
    two = gguf_estimate(model(), plan(-1, a=1, b=1)).needs["a"].graph
    partly = gguf_estimate(model(), plan(4, a=1, b=1)).needs["a"].graph

    assert partly == one
    assert two > 2 * one


def test_contexts_are_rounded_up_and_further_files_are_counted() -> None:
    """Cells come in 256; a projector lies on the first device."""
    odd = LoadPlan(slots=3, ctx_per_slot=257, batch_tokens=16)
    extra = LoadPlan(
        slots=1, ctx_per_slot=256, batch_tokens=16, gpu_layers=-1, shares={"a": 1}, extra_bytes=7
    )

    assert gguf_estimate(model(), odd).needs[HOST].kv == 3 * 2 * LAYERS * KV_BYTES
    assert gguf_estimate(model(), extra).needs["a"].weights == 4_008


def test_an_unknown_architecture_is_a_bound_and_says_so() -> None:
    """LO-205: full attention in every layer, and a note for people."""
    keys = {key.replace("llama.", "novel."): value for key, value in KEYS.items()}
    keys["general.architecture"] = "novel"

    estimate = gguf_estimate(model(keys=keys), plan(0))

    assert estimate.needs[HOST].kv == LAYERS * KV_BYTES
    assert estimate.notes == ("architecture 'novel' is not known: full attention is assumed",)


def test_without_flash_attention_scores_take_room() -> None:
    """Scores of every head over all cells, 32 bits each, and masks of 32 bits."""
    shared = {"slots": 1, "ctx_per_slot": 4_096, "batch_tokens": 16}
    with_flash = gguf_estimate(model(), LoadPlan(**shared)).needs[HOST].graph
    without = gguf_estimate(model(), LoadPlan(**shared, flash=False)).needs[HOST].graph

    assert without - with_flash == 4_096 * 16 * (4 * 4 + 2)


@pytest.mark.parametrize("number", ["5000", "9" * 60])
def test_a_layer_that_no_model_has_is_refused(number: str) -> None:
    """Places are counted layer by layer: a name in a file must not fill the memory."""
    odd = Tensor(f"blk.{number}.ffn_up.weight", (64, 128), 1)

    with pytest.raises(DimensionsError, match="blk"):
        gguf_model(KEYS, (odd,))
