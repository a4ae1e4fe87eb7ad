"""The core's catalog beside a naive one, over histories made by chance. ORCH-3031."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator_core.core.catalog_model import (
    ModelCard,
    ModelState,
)
from orchestrator_core.core.effects import (
    Effect,
    JobEnded,
    ModelRefused,
    ReplyModel,
    ReplyRefused,
)
from orchestrator_core.core.events import (
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    Recovered,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.records import AcceptRecord, CatalogRecord
from tests.unit.orchestrator_core.core.bench import Bench, only
from tests.unit.orchestrator_core.core.build import snapshot

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
