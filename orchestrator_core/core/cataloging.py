"""Changes of the catalog, and what they do to pools and waiting jobs. ORCH-3031, ORCH-3037.

A change is written to the journal like any decision, and holds from this step on: the next job that
is given meets it. Jobs that were accepted keep what they were accepted with.
"""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator_core.core.catalog import (
    MODEL_RESOURCE,
    retired_model,
    unknown_model,
)
from orchestrator_core.core.catalog_model import (
    CatalogEntry,
    ModelState,
    judge_digest,
)
from orchestrator_core.core.effects import ModelClosed, ModelRefused, PoolVerified, ReplyModel
from orchestrator_core.core.events import ModelDeleted, ModelPut, ModelStateSet
from orchestrator_core.core.lifecycle import fail_job
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.records import CatalogChange, CatalogRecord
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind


def put(state: State, event: ModelPut, now_ms: int) -> None:
    """Registers a model, or changes it. Asking again for what is so already changes nothing."""
    card, catalog = event.card, state.catalog
    entry = catalog.entries.get(card.model_id)
    if entry is not None and entry.card == card:
        state.emit(ReplyModel(event.reply_to, card.model_id))
        return
    refusal = _not_put(state, event, entry)
    if refusal is not None:
        state.emit(ModelRefused(event.reply_to, refusal))
        return
    if entry is None:
        entry = CatalogEntry(card, ModelState.ACTIVE, 1, now_ms, now_ms)
        _write(state, entry, CatalogChange.REGISTERED)
    else:
        entry = replace(entry, card=card, revision=entry.revision + 1, updated_ms=now_ms)
        _write(state, entry, CatalogChange.UPDATED)
    _apply(state, card.model_id, now_ms)
    state.emit(ReplyModel(event.reply_to, card.model_id))


def set_state(state: State, event: ModelStateSet, now_ms: int) -> None:
    """Retires a model, or makes it active. Retired again, it has another grace."""
    entry = state.catalog.entries.get(event.model_id)
    refusal = _stale(state, entry, event.model_id, event.revision)
    if refusal is not None:
        state.emit(ModelRefused(event.reply_to, refusal))
        return
    assert entry is not None, "an unknown one is refused"
    reply = ReplyModel(event.reply_to, event.model_id)
    if event.state is ModelState.ACTIVE is entry.state:
        state.emit(reply)
        return
    changed = replace(
        entry,
        state=event.state,
        revision=entry.revision + 1,
        updated_ms=now_ms,
        retired_ms=None,
        grace_until_ms=None,
        replaced_by="",
    )
    state.catalog.closed.pop(event.model_id, None)
    change = CatalogChange.ACTIVATED
    if event.state is ModelState.RETIRED:
        change = CatalogChange.RETIRED
        changed = replace(
            changed,
            retired_ms=now_ms if entry.retired_ms is None else entry.retired_ms,
            grace_until_ms=now_ms + event.grace_ms,
            replaced_by=event.replaced_by,
        )
    _write(state, changed, change)
    _apply(state, event.model_id, now_ms)
    state.emit(reply)


def delete(state: State, event: ModelDeleted, now_ms: int) -> None:
    """Forgets a model. Its jobs run on, and pools serve it as one that was never in the catalog."""
    entry = state.catalog.entries.get(event.model_id)
    refusal = _stale(state, entry, event.model_id, event.revision)
    if refusal is None and entry is not None and not event.force:
        refusal = _in_use(state, entry)
    if refusal is not None or entry is None:
        assert refusal is not None, "an unknown one is refused"
        state.emit(ModelRefused(event.reply_to, refusal))
        return
    state.catalog.remove(event.model_id)
    state.emit(CatalogRecord(entry, CatalogChange.DELETED, over=True))
    _apply(state, event.model_id, now_ms)
    state.emit(ReplyModel(event.reply_to, event.model_id))


def restore(state: State, records: Sequence[CatalogRecord], now_ms: int) -> None:
    """Takes the catalog over from the journal, before the jobs that go on."""
    for record in records:
        state.catalog.put(record.entry)
    for record in records:
        _apply(state, record.entry.card.model_id, now_ms)


def grace_ended(state: State, model_id: str, now_ms: int) -> None:
    """Pools that serve a retired model take no more of it, and what waits for it fails.

    What runs goes on to its end; what loses its attempt after this comes by here too. O(jobs).
    """
    entry = state.catalog.entries.get(model_id)
    if entry is None or entry.state is not ModelState.RETIRED:
        return
    first = model_id not in state.catalog.closed
    state.catalog.closed[model_id] = None
    served = _serving(state, model_id)
    for pool in served:
        pool.retired = True
        state.refresh(pool, now_ms)
    waiting = [
        job
        for job in state.jobs.values()
        if job.state is JobState.QUEUED and job.spec.needs.model_id == model_id
    ]
    for job in waiting:
        fail_job(state, job, retired_model(entry, now_ms), now_ms)
    if first:
        state.fleet_changed()
    if first or waiting:
        pool_ids = tuple(pool.snapshot.pool_id for pool in served)
        state.emit(ModelClosed(model_id, pool_ids, len(waiting)))
    schedule(state, now_ms)


def judge(state: State, pool: Pool) -> None:
    """Notes what the catalog says of a pool; due when it is new or tells something new. O(1)."""
    snapshot = pool.snapshot
    entry = state.catalog.entries.get(snapshot.model_id)
    pool.retired = snapshot.model_id in state.catalog.closed
    former, pool.verdict = pool.verdict, None
    if entry is None or not entry.card.digest or snapshot.unknown:
        return
    pool.verdict = judge_digest(entry.card.digest, snapshot.model_digest)
    if pool.verdict is not former:
        told = PoolVerified(snapshot.pool_id, snapshot.model_id, snapshot.engine, pool.verdict)
        state.emit(told)


def _not_put(state: State, event: ModelPut, entry: CatalogEntry | None) -> Refusal | None:
    card, catalog = event.card, state.catalog
    if event.revision:
        stale = _stale(state, entry, card.model_id, event.revision)
        if stale is not None:
            return stale
    elif entry is not None:
        text = f"model {card.model_id!r} is in the catalog already, and not the same; update it"
        return _duplicate(text, card.model_id)
    taken = catalog.taken(card)
    if taken is not None:
        name, owner = taken
        text = f"the name {name!r} belongs to model {owner!r} already: choose another one"
        return _duplicate(text, name)
    if entry is None and len(catalog.entries) >= state.config.catalog_models_max:
        text = (
            f"the catalog has {len(catalog.entries)} models, as many as catalog.models_max allows:"
            " delete one that nobody needs"
        )
        return Refusal(Reason.ADMISSION_REJECT, text, policy_label="catalog", resource="catalog")
    return None


def _duplicate(text: str, name: str) -> Refusal:
    kind = {"resource_type": MODEL_RESOURCE}
    return Refusal(Reason.DUPLICATE, text, resource=name, metadata=kind)


def _stale(
    state: State, entry: CatalogEntry | None, model_id: str, revision: int
) -> Refusal | None:
    """Why a change is not made: its model is not there, or was changed meanwhile."""
    if entry is None:
        return unknown_model(state.catalog, model_id)
    if revision in (0, entry.revision):
        return None
    text = (
        f"model {model_id!r} has revision {entry.revision}, not {revision}: "
        "look at what somebody changed, and decide again"
    )
    told = {"resource_type": MODEL_RESOURCE, "revision": str(entry.revision)}
    return Refusal(Reason.REVISION_CONFLICT, text, resource=model_id, metadata=told)


def _in_use(state: State, entry: CatalogEntry) -> Refusal | None:
    model_id = entry.card.model_id
    if entry.state is ModelState.RETIRED:
        return None
    live = sum(job.live and job.spec.needs.model_id == model_id for job in state.jobs.values())
    if not live:
        return None
    text = f"{live} jobs of model {model_id!r} have not ended: retire it first, or force this"
    told = {"resource_type": MODEL_RESOURCE, "live_jobs": str(live)}
    return Refusal(Reason.MODEL_IN_USE, text, resource=model_id, metadata=told)


def _write(state: State, entry: CatalogEntry, change: CatalogChange) -> None:
    state.catalog.put(entry)
    state.emit(CatalogRecord(entry, change))


def _apply(state: State, model_id: str, now_ms: int) -> None:
    """Lets a change of a model take effect: names, pools, the end of its grace."""
    entry = state.catalog.entries.get(model_id)
    state.timers.clear(TimerKind.MODEL_GRACE, model_id)
    if entry is not None:
        _expect(state, entry)
        if entry.grace_until_ms is not None and model_id not in state.catalog.closed:
            state.timers.set(TimerKind.MODEL_GRACE, model_id, entry.grace_until_ms)
    for pool in _serving(state, model_id):
        judge(state, pool)
        state.refresh(pool, now_ms)
    state.fleet_changed()
    schedule(state, now_ms)


def _expect(state: State, entry: CatalogEntry) -> None:
    """Takes the catalog's word for the length of tokens until jobs of the model have shown it."""
    ratio, stats = entry.card.bytes_per_token, state.predictor.model(entry.card.model_id)
    if ratio is not None and not stats.finished:
        stats.bytes_per_token = ratio


def _serving(state: State, model_id: str) -> list[Pool]:
    """Pools of a model, in order of id."""
    return [
        state.pools[pool_id]
        for pool_id in sorted(state.pools)
        if state.pools[pool_id].snapshot.model_id == model_id
    ]
