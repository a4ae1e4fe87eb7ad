"""The catalog: what it adds to jobs, refuses and closes. ORCH-3031."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.catalog import Catalog, resolve
from orchestrator_core.core.catalog_model import (
    CACHE_TYPES,
    CatalogEntry,
    DigestVerdict,
    Dimensions,
    ModelCard,
    ModelState,
)
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import (
    Effect,
    JobEnded,
    ModelClosed,
    PoolVerified,
    SendStart,
)
from orchestrator_core.core.events import (
    AttemptRefused,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.placement import RETIRED, pool_shortfalls
from orchestrator_core.core.spec import JobSpec, Needs
from pool_managerd.core import kv_size
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.settings import STEADY

FULL = ModelCard(
    "m",
    aliases=("alias",),
    digest="sha256:1",
    engines=("llama.cpp",),
    engine_version="7",
    sampler_profile_version="s",
    quantization="Q4",
    ctx_max=100,
    dimensions=Dimensions(2, 4, 8, 8),
    min_vram_bytes=10,
    min_compute_cap=(8, 6),
    required_extensions=("grammar",),
    device_mask=("g1", "g2"),
    expected_tokens=9,
)


def resolved(card: ModelCard, asked: JobSpec, **config: Any) -> JobSpec | Refusal:
    """A job that meets a catalog of one model."""
    catalog = Catalog()
    catalog.put(CatalogEntry(card, ModelState.ACTIVE, 4, 0, 0))
    return resolve(catalog, asked, CoreConfig(**config), 0)


def test_what_a_job_leaves_unset_is_filled() -> None:
    """And told, by the names that the job's fields have."""
    made = resolved(FULL, spec(needs=Needs("alias", required_ctx=50)))

    assert isinstance(made, JobSpec)
    assert made.needs == Needs(
        "m",
        engine="llama.cpp",
        engine_version="7",
        sampler_profile_version="s",
        min_vram_bytes=10,
        quantization="Q4",
        min_compute_cap=(8, 6),
        required_extensions=("grammar",),
        device_mask=("g1", "g2"),
        required_ctx=50,
        listed_digest="sha256:1",
    )
    assert (made.expected_tokens, made.catalog_kv_bytes) == (9, 2 * 50 * 2 * (32 + 32))
    assert made.from_catalog is not None
    assert (made.from_catalog.alias, made.from_catalog.revision) == ("alias", 4)
    assert dict(made.from_catalog.filled) == {
        "engine": "llama.cpp",
        "engine_version": "7",
        "est_kv_bytes": "12800",
        "expected_tokens": "9",
        "model_digest": "sha256:1",
        "requirements.device_mask": "g1 g2",
        "requirements.min_compute_cap": "8.6",
        "requirements.min_vram_bytes": "10",
        "requirements.quantization": "Q4",
        "requirements.required_extensions": "grammar",
        "sampler_profile_version": "s",
    }


def test_what_a_job_says_counts_where_it_asks_for_more() -> None:
    """The catalog adds nothing that the job has stated, and never takes a requirement away."""
    needs = Needs(
        "m",
        engine="llama.cpp",
        engine_version="8",
        model_digest="sha256:1",
        sampler_profile_version="t",
        min_vram_bytes=20,
        quantization="Q4",
        min_compute_cap=(8, 10),
        required_extensions=("grammar", "logprobs"),
        device_mask=("g1",),
    )
    made = resolved(FULL, spec(needs=needs, expected_tokens=3, est_kv_bytes=5))

    assert isinstance(made, JobSpec)
    assert made.needs == needs
    assert (made.expected_tokens, made.est_kv_bytes, made.catalog_kv_bytes) == (3, 5, None)
    assert made.from_catalog is not None
    assert made.from_catalog.filled == ()


def test_what_a_job_asks_for_less_of_is_not_lowered() -> None:
    """Numbers are compared as numbers, lists are joined."""
    needs = Needs("m", min_vram_bytes=3, min_compute_cap=(8, 1), required_extensions=("logprobs",))
    made = resolved(FULL, spec(needs=needs))

    assert isinstance(made, JobSpec)
    assert (made.needs.min_vram_bytes, made.needs.min_compute_cap) == (10, (8, 6))
    assert made.needs.required_extensions == ("grammar", "logprobs")


@pytest.mark.parametrize(
    ("needs", "reason", "says"),
    [
        (Needs("m", engine="vllm"), Reason.INCOMPATIBLE_ENGINE, "runs on llama.cpp"),
        (Needs("m", model_digest="sha256:2"), Reason.INCOMPATIBLE_MODEL, "sha256:1"),
        (Needs("m", quantization="Q8"), Reason.INCOMPATIBLE_MODEL, "is Q4 by the catalog"),
        (Needs("m", device_mask=("g1", "g3")), Reason.INCOMPATIBLE_DEVICE_MASK, "g1 g2"),
        (Needs("m", required_ctx=101), Reason.INCOMPATIBLE_MODEL, "spec.required_ctx"),
    ],
)
def test_what_contradicts_the_catalog_is_refused(needs: Needs, reason: Reason, says: str) -> None:
    """Before any pool is looked at."""
    answer = resolved(FULL, spec(needs=needs))

    assert isinstance(answer, Refusal)
    assert answer.reason is reason
    assert says in answer.message


def test_a_prompt_that_is_certainly_too_long_is_refused() -> None:
    """By the same bound as that of pools: a token stands for so many bytes at most."""
    fits = spec(prompt_bytes=99 * 256, needs=Needs("m"))
    longer = replace(fits, prompt_bytes=100 * 256)

    assert isinstance(resolved(FULL, fits), JobSpec)
    refused = resolved(FULL, longer)
    assert isinstance(refused, Refusal)
    assert refused.metadata == {"field": "spec.input"}


def test_several_engines_let_any_of_them_serve() -> None:
    """The job's own choice among them is its own."""
    card = ModelCard("m", engines=("vllm", "llama.cpp"))
    bench = Bench(wide("p", engine="llama.cpp"), wide("q", engine="ollama"))
    bench.step(ModelPut(card, 0, 0))

    (start,) = only(bench.enqueue("j"), SendStart)
    chosen = resolved(card, spec(needs=Needs("m", engine="vllm")))

    assert start.pool_id == "p"
    assert isinstance(chosen, JobSpec)
    assert (chosen.needs.engine, chosen.needs.engines) == ("vllm", ())


def test_equal_needs_share_a_lane_and_a_resolution() -> None:
    """What is made once for a kind of jobs is one object for all of them."""
    catalog = Catalog()
    catalog.put(CatalogEntry(FULL, ModelState.ACTIVE, 1, 0, 0))
    first = resolve(catalog, spec("a"), CoreConfig(), 0)
    second = resolve(catalog, spec("b"), CoreConfig(), 0)

    assert isinstance(first, JobSpec)
    assert isinstance(second, JobSpec)
    assert first.needs is second.needs
    assert first.from_catalog is second.from_catalog
    assert len(catalog.resolved) == 1


def test_digests_of_pools_are_judged_when_something_new_is_known() -> None:
    """Told once for each verdict: at registration, change of the catalog, and of the pool."""
    bench = Bench(wide("p", model_digest="sha256:2"), wide("q"), wide("r", model_id="other"))
    put = bench.step(ModelPut(ModelCard("m", digest="sha256:1"), 0, 0))
    same = bench.report(wide("p", model_digest="sha256:2", version=2))
    better = bench.report(wide("p", model_digest="sha256:1", version=3, replica_id="p#2"))
    changed = bench.step(ModelPut(ModelCard("m", digest="sha256:3"), 1, 0))

    def told(effects: list[Effect]) -> list[tuple[str, DigestVerdict]]:
        return [(each.pool_id, each.verdict) for each in only(effects, PoolVerified)]

    assert told(put) == [("p", DigestVerdict.MISMATCH), ("q", DigestVerdict.UNKNOWN)]
    assert told(same) == []
    assert told(better) == [("p", DigestVerdict.MATCH)]
    assert told(changed) == [("p", DigestVerdict.MISMATCH)]


def test_what_loses_its_pool_after_the_grace_ends() -> None:
    """A job that was running is not left to wait for pools that serve its model no more."""
    bench = Bench(wide())
    bench.step(ModelPut(ModelCard("m"), 0, 0))
    bench.enqueue("runs")
    closing = bench.step(ModelStateSet("m", ModelState.RETIRED, 0, 0, "", 0))
    after = bench.step(AttemptRefused("runs", 1, "no_slot"))

    assert [(each.pool_ids, each.jobs_failed) for each in only(closing, ModelClosed)] == [
        (("p",), 0)
    ]
    assert not only(closing, JobEnded)
    (ended,) = only(after, JobEnded)
    assert ended.outcome.error is not None
    assert ended.outcome.error.reason is Reason.MODEL_RETIRED


def test_a_pool_that_comes_later_is_closed_too() -> None:
    """It is not placed on, and says why."""
    bench = Bench(wide("p"))
    bench.step(ModelPut(ModelCard("m"), 0, 0))
    bench.step(ModelStateSet("m", ModelState.RETIRED, 0, 0, "", 0))
    bench.register(wide("q"), host="h2")

    lacking = [pool_shortfalls(pool, 0, 1_000) for pool in bench.core.pools.values()]
    assert [[found.offered for found in each] for each in lacking] == [[RETIRED], [RETIRED]]
    bench.step(ModelDeleted("m", 0, False, 0))
    assert only(bench.enqueue("j"), SendStart)


def test_the_first_guess_of_a_tokens_length_is_the_catalogs() -> None:
    """Until a job of the model has finished."""
    bench = Bench(wide())
    bench.step(ModelPut(ModelCard("m", bytes_per_token=2.0), 0, 0))
    before = bench.state.predictor.shape(spec(prompt_bytes=100)).prompt_tokens
    bench.enqueue("j", prompt_bytes=100)
    bench.end("j")
    bench.step(ModelPut(ModelCard("m", bytes_per_token=3.0), 1, 0))
    after = bench.state.predictor.shape(spec(prompt_bytes=100)).prompt_tokens

    assert before == 50.0
    assert after == 1.0


def test_the_dimensions_size_a_job_where_the_pool_does_not() -> None:
    """LO-205: a pool that tells what its tokens take knows better."""
    card = ModelCard("m", dimensions=Dimensions(1, 1, 4, 4))
    bench = Bench(
        wide("p", vram_total_bytes=100, vram_free_bytes=100),
        wide("q", vram_total_bytes=100, vram_free_bytes=100, kv_bytes_per_token=1),
    )
    bench.step(ModelPut(card, 0, 0))

    (start,) = only(bench.enqueue("j", needs=Needs("m", required_ctx=10)), SendStart)

    assert start.pool_id == "q"


def test_the_types_of_a_cache_are_pool_managers() -> None:
    """The table is stated twice because the services share nothing but the wire."""
    theirs = {kind.value[0]: kind.value[1:] for kind in kv_size.CacheType}

    assert theirs == CACHE_TYPES


@STEADY
@given(
    layers=st.integers(1, 8),
    windowed=st.integers(0, 8),
    heads=st.integers(1, 9),
    lengths=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    window=st.integers(1, 50),
    ctx=st.integers(0, 200),
    types=st.tuples(st.sampled_from(sorted(CACHE_TYPES)), st.sampled_from(sorted(CACHE_TYPES))),
)
def test_dimensions_take_what_a_pool_manager_reckons(  # noqa: PLR0913, PLR0917 - what a model is
    layers: int,
    windowed: int,
    heads: int,
    lengths: tuple[int, int],
    window: int,
    ctx: int,
    types: tuple[str, str],
) -> None:
    """LO-205: the same bytes as from the file, but for what an engine pads."""
    windowed = min(windowed, layers)
    key, value = (heads * length for length in lengths)
    full = kv_size.Layer(key, value)
    sliding = kv_size.Layer(key, value, window=window)
    model = kv_size.ModelDimensions((full,) * (layers - windowed) + (sliding,) * windowed)
    shape = kv_size.CacheShape(*(kv_size.CacheType.named(name) for name in types))

    ours = Dimensions(layers, heads, *lengths, windowed, window, *types)

    assert ours.kv_bytes(ctx) == kv_size.kv_bytes(model, ctx, shape)
