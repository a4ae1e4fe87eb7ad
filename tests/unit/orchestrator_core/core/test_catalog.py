"""The catalog: what it adds to jobs, refuses and closes, against a naive model of it. ORCH-3031."""

import random
from dataclasses import dataclass, field, replace
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
    ModelRefused,
    PoolVerified,
    ReplyModel,
    ReplyRefused,
    SendStart,
)
from orchestrator_core.core.events import (
    AttemptRefused,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    Recovered,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.placement import RETIRED, pool_shortfalls
from orchestrator_core.core.records import AcceptRecord, CatalogRecord
from orchestrator_core.core.spec import JobSpec, Needs
from pool_managerd.core import kv_size
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot, spec
from tests.unit.orchestrator_core.core.settings import STEADY

IDS = ("a", "b", "c")
ALIASES = ("x", "y")


@dataclass
class Known:
    """What the naive model remembers of one model."""

    card: ModelCard
    revision: int = 1
    retired: bool = False
    closes_ms: int | None = None


@dataclass
class Naive:
    """A catalog as one would write it down in a table; no index, no timers."""

    models: dict[str, Known] = field(default_factory=dict)

    def owner(self, name: str) -> Known | None:
        """The model of a name, looked for among all."""
        for known in self.models.values():
            if name in (known.card.model_id, *known.card.aliases):
                return known
        return None

    def put(self, card: ModelCard, revision: int) -> Reason | None:
        """Registers or changes; the reason why not."""
        known = self.models.get(card.model_id)
        if known is not None and known.card == card:
            return None
        if revision and known is None:
            return Reason.MODEL_UNKNOWN
        if known is not None and revision != known.revision:
            return Reason.REVISION_CONFLICT if revision else Reason.DUPLICATE
        for name in (card.model_id, *card.aliases):
            other = self.owner(name)
            if other is not None and other is not known:
                return Reason.DUPLICATE
        if known is None:
            self.models[card.model_id] = Known(card)
        else:
            known.card, known.revision = card, known.revision + 1
        return None

    def closed(self, model_id: str, now_ms: int) -> bool:
        """True once the grace of a model is over."""
        known = self.models.get(model_id)
        return known is not None and known.closes_ms is not None and known.closes_ms <= now_ms


def card(rng: random.Random) -> ModelCard:
    """A model that quarrels about few names."""
    model_id = rng.choice(IDS)
    names = [name for name in (*ALIASES, *IDS) if name != model_id]
    return ModelCard(
        model_id,
        aliases=tuple(rng.sample(names, rng.choice((0, 0, 1, 1, 2)))),
        expected_tokens=rng.choice((None, 5, 6)),
    )


class Both:
    """The core and the naive model, told the same. Pools serve `a` and `b`; nothing ever runs."""

    def __init__(self, *, required: bool) -> None:
        self.required = required
        self.naive = Naive()
        self.bench = self._started()
        self.records: dict[str, CatalogRecord] = {}
        self.live: dict[str, str] = {}
        self.accepts: dict[str, AcceptRecord] = {}
        self.jobs = 0

    def _started(self) -> Bench:
        # All slots are taken, so whatever is accepted waits.
        busy = {"slots_total": 1, "slots_free": 0}
        bench = Bench(catalog_required=self.required, queue_capacity=1_000, reattach_grace_ms=30)
        bench.register(*(snapshot(f"p-{name}", model_id=name, **busy) for name in ("a", "b")))
        return bench

    def step(self, event: Any) -> list[Effect]:
        """One event of the core; what it writes is kept, what it ends is forgotten."""
        effects = self.bench.step(event)
        self.note(effects)
        return effects

    def note(self, effects: list[Effect]) -> None:
        """Keeps what a journal would."""
        for record in only(effects, CatalogRecord):
            self.records.pop(record.entry.card.model_id, None)
            if not record.over:
                self.records[record.entry.card.model_id] = record
        for ended in only(effects, JobEnded):
            assert ended.outcome.error is not None
            assert ended.outcome.error.reason is Reason.MODEL_RETIRED
            del self.live[ended.job_id], self.accepts[ended.job_id]

    def answered(self, effects: list[Effect]) -> Reason | None:
        """The reason of a refused change; None for one that was answered well."""
        refused = only(effects, ModelRefused)
        assert len(refused) + len(only(effects, ReplyModel)) == 1
        return refused[0].refusal.reason if refused else None

    def put(self, card: ModelCard, revision: int) -> None:
        """Registers or changes a model in both."""
        told = self.answered(self.step(ModelPut(card, revision, 0)))
        assert told == self.naive.put(card, revision)

    def retire(self, model_id: str, grace_ms: int) -> None:
        """Retires a model in both."""
        event = ModelStateSet(model_id, ModelState.RETIRED, 0, grace_ms, "other", 0)
        told, known = self.answered(self.step(event)), self.naive.models.get(model_id)
        assert told == (Reason.MODEL_UNKNOWN if known is None else None)
        if known is not None:
            known.retired, known.closes_ms = True, self.bench.now_ms + grace_ms
            known.revision += 1

    def activate(self, model_id: str) -> None:
        """Activates a model in both."""
        event = ModelStateSet(model_id, ModelState.ACTIVE, 0, 0, "", 0)
        told, known = self.answered(self.step(event)), self.naive.models.get(model_id)
        assert told == (Reason.MODEL_UNKNOWN if known is None else None)
        if known is not None and known.retired:
            known.retired, known.closes_ms = False, None
            known.revision += 1

    def delete(self, model_id: str, *, force: bool) -> None:
        """Deletes a model in both."""
        told = self.answered(self.step(ModelDeleted(model_id, 0, force, 0)))
        known, used = self.naive.models.get(model_id), model_id in self.live.values()
        if known is None:
            assert told is Reason.MODEL_UNKNOWN
        elif used and not known.retired and not force:
            assert told is Reason.MODEL_IN_USE
        else:
            assert told is None
            del self.naive.models[model_id]

    def enqueue(self, name: str) -> None:
        """Gives a job to both."""
        self.jobs += 1
        job_id, known = f"j{self.jobs}", self.naive.owner(name)
        effects = self.bench.enqueue(job_id, model=name)
        self.note(effects)
        refused = only(effects, ReplyRefused)
        if known is None and self.required:
            expected: Reason | None = Reason.MODEL_UNKNOWN
        elif known is not None and known.retired:
            expected = Reason.MODEL_RETIRED
        else:
            model_id = name if known is None else known.card.model_id
            # Soon after a restart its pools may be those of a host that is not back yet.
            soon = self.bench.now_ms < self.bench.state.hosts_due_ms
            nobody = Reason.POOL_UNAVAILABLE if soon else Reason.INCOMPATIBLE_MODEL
            expected = None if model_id in ("a", "b") else nobody
            if expected is None:
                self._accepted(effects, name, known)
        assert (refused[0].refusal.reason if refused else None) is expected

    def _accepted(self, effects: list[Effect], name: str, known: Known | None) -> None:
        (accept,) = only(effects, AcceptRecord)
        made = accept.spec
        model_id = name if known is None else known.card.model_id
        self.live[made.job_id], self.accepts[made.job_id] = model_id, accept
        assert made.needs.model_id == model_id
        assert made.expected_tokens == (known.card.expected_tokens if known else None)
        if known is None:
            assert made.from_catalog is None
        else:
            assert made.from_catalog is not None
            assert made.from_catalog.alias == ("" if name == model_id else name)
            assert made.from_catalog.revision == known.revision

    def later(self, span_ms: int) -> None:
        """Time passes."""
        self.note(self.bench.at(self.bench.now_ms + span_ms))

    def restart(self) -> None:
        """The orchestrator starts anew from what was written."""
        now_ms = self.bench.now_ms
        self.bench = self._started()
        self.bench.now_ms = now_ms
        models = tuple(self.records[model_id] for model_id in sorted(self.records))
        self.step(Recovered(accepts=tuple(self.accepts.values()), models=models))

    def compare(self) -> None:
        """Everything that both know."""
        core, now_ms = self.bench.core, self.bench.now_ms
        for name in (*IDS, *ALIASES, "never"):
            entry, known = core.catalog.find(name), self.naive.owner(name)
            assert (entry.card if entry else None) == (known.card if known else None)
            if entry is not None and known is not None:
                assert (entry.revision, entry.state is ModelState.RETIRED) == (
                    known.revision,
                    known.retired,
                )
                assert entry.grace_until_ms == known.closes_ms
        for pool in core.pools.values():
            assert pool.retired == self.naive.closed(pool.snapshot.model_id, now_ms)
        for job_id, model_id in self.live.items():
            assert core.jobs[job_id].live
            assert not self.naive.closed(model_id, now_ms)
        assert {j.job_id for j in core.jobs.values() if j.live} == self.live.keys()


def play(seed: int, steps: int) -> None:
    """One life of a catalog, compared after each move."""
    rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
    both = Both(required=seed % 3 == 0)
    for _ in range(steps):
        move = rng.choices(
            ("put", "retire", "activate", "delete", "enqueue", "later", "restart"),
            (30, 6, 8, 6, 40, 12, 3),
        )[0]
        if move == "put":
            made = card(rng)
            known = both.naive.models.get(made.model_id)
            present = known.revision if known else 0
            both.put(made, rng.choice((0, present, present, max(0, present - 1), present + 1)))
        elif move == "retire":
            both.retire(rng.choice(IDS), rng.choice((0, 7, 30)))
        elif move == "activate":
            both.activate(rng.choice(IDS))
        elif move == "delete":
            both.delete(rng.choice(IDS), force=rng.random() < 0.5)
        elif move == "enqueue":
            both.enqueue(rng.choice((*IDS, *ALIASES)))
        elif move == "later":
            both.later(rng.randint(1, 20))
        else:
            both.restart()
        both.compare()


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_the_core_does_as_a_naive_catalog(first: int) -> None:
    """Whatever is registered, changed, retired, deleted and asked for, through restarts."""
    for seed in range(first, first + 10):
        play(seed, 150)


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
