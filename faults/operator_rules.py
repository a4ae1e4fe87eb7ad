"""What an operator may rely on: what was said to be done is durable, what was refused is not done.

The journal's order is that of decisions, so what it says of a model or a pool counts for every
accept and dispatch that follows there.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from faults.event import Event
from faults.history import (
    AttemptBegan,
    JournalAccepted,
    JournalDispatched,
    JournalEnded,
    Recovered,
)
from faults.observed import Observed, Violation
from faults.operator_events import (
    ActDone,
    ActRefused,
    ActSent,
    FileWritten,
    InForce,
    JournalDrain,
    JournalModel,
    ModelSeen,
    PoolLeftOut,
    PoolSeen,
)

RETIRED = "RETIRED"
MODEL_RETIRED = "MODEL_RETIRED"
LATE_MS = 1_000
"""So late a deadline may be noticed: by a busy loop, or before a stop of it counts as a pause."""

_E = TypeVar("_E", bound=Event)


@dataclass(slots=True)
class _Written:
    """All that was written so far, by subject."""

    models: defaultdict[str, list[JournalModel]] = field(default_factory=lambda: defaultdict(list))
    drains: defaultdict[str, list[JournalDrain]] = field(default_factory=lambda: defaultdict(list))
    in_force: list[InForce] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Notes an event, if it is of a record, or of settings."""
        match event:
            case JournalModel():
                self.models[event.model].append(event)
            case JournalDrain():
                self.drains[event.pool].append(event)
            case InForce():
                self.in_force.append(event)
            case _:
                pass


def word_kept(observed: Observed) -> Iterator[Violation]:
    """I17: what an operator was told was so, durably, at some instant since the question."""
    written = _Written()
    for event in observed.events:
        written.take(event)
        match event:
            case ActDone() if event.kind != "renew":
                if not _was_done(event, written):
                    yield Violation("I17", "", "said to be done before it was durable", (event,))
            case PoolSeen():
                if not _drained_as(event.draining, _held(written.drains[event.pool], event)):
                    yield Violation("I17", "", "a drain was told otherwise than written", (event,))
            case ModelSeen():
                told = (event.state, event.revision)
                if all(_state(each) != told for each in _held(written.models[event.model], event)):
                    yield Violation("I17", "", "a model was told otherwise than written", (event,))
            case _:
                pass


def _was_done(act: ActDone, written: _Written) -> bool:
    if act.kind == "reload":
        held = _held(written.in_force, act)
        return any(each is not None and each.mark == act.subject for each in held)
    if act.kind in ("drain", "undrain"):
        return _drained_as(act.kind == "drain", _held(written.drains[act.subject], act))
    return any(_is_done(act, each) for each in _held(written.models[act.subject], act))


def _held(past: Sequence[_E], told: ActDone | PoolSeen | ModelSeen) -> list[_E | None]:
    """All that held at some instant since the question; None: nothing was written yet."""
    later = [each for each in past if each.at_ms >= told.asked_ms]
    before = past[len(past) - len(later) - 1] if len(later) < len(past) else None
    return [before, *later]


def _drained_as(wanted: bool, held: Sequence[JournalDrain | None]) -> bool:
    return any((each is not None and each.draining) is wanted for each in held)


def _is_done(act: ActDone, model: JournalModel | None) -> bool:
    match act.kind:
        case "delete":
            return _state(model)[0] == ""
        case "activate":
            return _state(model)[0] == "ACTIVE"
        case "retire":
            return model is not None and model.retired_by == act.act
        case _:
            return model is not None and model.stated_by == act.act


def _state(model: JournalModel | None) -> tuple[str, int]:
    """State and revision; of a model that is not there, none."""
    return ("", 0) if model is None or not model.state else (model.state, model.revision)


def renewed(observed: Observed) -> Iterator[Violation]:
    """I17: once a pool is said to be reloaded, no engine from before works on anything new."""
    engines: dict[str, int] = {}
    done: dict[str, ActDone] = {}
    for event in observed.events:
        match event:
            case AttemptBegan():
                since_ms = engines.setdefault(event.replica, event.at_ms)
                act = done.get(event.pool)
                if act is not None and since_ms < act.asked_ms:
                    what = "began on an engine that was said to be replaced"
                    yield Violation("I17", event.job_id, what, (act, event))
            case ActDone(kind="renew"):
                done[event.subject] = event
            case _:
                pass


def recovered_as_written(observed: Observed) -> Iterator[Violation]:
    """I17: a start finds the catalog and every drain as they were written."""
    models: dict[str, tuple[str, int]] = {}
    drains: dict[str, JournalDrain] = {}
    for event in observed.events:
        match event:
            case JournalModel():
                models[event.model] = _state(event)
            case JournalDrain():
                drains[event.pool] = event
            case Recovered():
                there = {model: state for model, state in models.items() if state[0]}
                if event.models is not None and dict(event.models) != there:
                    what = f"the catalog recovered as {dict(event.models)}, written was {there}"
                    yield Violation("I17", "", what)
                drained = sorted(pool for pool, drain in drains.items() if drain.draining)
                if event.drains is not None and sorted(event.drains) != drained:
                    what = f"recovered drains of {sorted(event.drains)}, written were {drained}"
                    yield Violation("I17", "", what)
            case _:
                pass


def refused_changes_nothing(observed: Observed) -> Iterator[Violation]:
    """I18: all that is written was asked for, once, and not refused."""
    refused = {event.act: event for event in observed.all(ActRefused)}
    asked: Counter[tuple[str, str]] = Counter()
    models: dict[str, JournalModel] = {}
    for event in observed.events:
        match event:
            case ActSent():
                asked[event.kind, event.subject] += event.act not in refused
            case PoolLeftOut():
                asked["undrain", event.pool] += 1
            case JournalModel():
                for act in (event.stated_by, event.retired_by):
                    if act in refused:
                        yield Violation(
                            "I18", "", "was refused, and is done", (refused[act], event)
                        )
                kind = _unmarked(event, models.get(event.model))
                models[event.model] = event
                if kind:
                    yield from _asked_for(asked, kind, event.model, event)
            case JournalDrain():
                kind = "drain" if event.draining else "undrain"
                yield from _asked_for(asked, kind, event.pool, event)
            case _:
                pass


def _unmarked(model: JournalModel, before: JournalModel | None) -> str:
    """The kind of a change that carries no act: deleting, and making active again."""
    if not model.state:
        return "delete"
    was_retired = before is not None and before.state == RETIRED
    return "activate" if was_retired and model.state != RETIRED else ""


def _asked_for(
    asked: Counter[tuple[str, str]], kind: str, subject: str, event: JournalModel | JournalDrain
) -> Iterator[Violation]:
    asked[kind, subject] -= 1
    if asked[kind, subject] < 0:
        yield Violation("I18", "", f"{kind} was written, and nobody asked for it", (event,))


def settings_as_written(observed: Observed) -> Iterator[Violation]:
    """I18: decided is by a good file alone: at a start the last one, else the present one."""
    present = good = FileWritten(at_ms=0, mark="", good=True)
    for event in observed.events:
        match event:
            case FileWritten():
                present, good = event, event if event.good else good
            case InForce():
                file = good if event.started else present
                if not file.good or event.mark != file.mark:
                    what = "other settings are in force than were written"
                    yield Violation("I18", "", what, (file, event))
            case _:
                pass


def retired_as_promised(observed: Observed) -> Iterator[Violation]:
    """I19: a retired model takes no job; after its grace none starts, and what waits fails."""
    models: dict[str, JournalModel] = {}
    model_of: dict[str, str] = {}
    for event in observed.events:
        match event:
            case JournalModel():
                models[event.model] = event
            case JournalAccepted():
                model_of[event.job_id] = event.model
                model = models.get(event.model)
                if model is not None and model.state == RETIRED:
                    what = "accepted although its model was retired"
                    yield Violation("I19", event.job_id, what, (model, event))
            case JournalDispatched():
                model = models.get(model_of.get(event.job_id, ""))
                if model is not None and grace_over(model, (event.decided_ms or 0) - LATE_MS):
                    what = "started although the grace of its model was over"
                    yield Violation("I19", event.job_id, what, (model, event))
            case JournalEnded(reason="MODEL_RETIRED"):
                model = models.get(model_of.get(event.job_id, ""))
                if model is None or not grace_over(model, event.at_ms):
                    what = "failed for its model, whose grace was not over"
                    yield Violation("I19", event.job_id, what, (event,))
            case _:
                pass


def grace_over(model: JournalModel, at_ms: int) -> bool:
    """True when a model is retired and its grace was over by then."""
    ends_ms = model.grace_ends_ms
    return model.state == RETIRED and ends_ms is not None and ends_ms <= at_ms


def drained_get_nothing(observed: Observed) -> Iterator[Violation]:
    """I20: nothing is dispatched to a pool from the drain of it to the end of that."""
    drains: dict[str, JournalDrain] = {}
    for event in observed.events:
        match event:
            case JournalDrain():
                drains[event.pool] = event
            case JournalDispatched():
                drain = drains.get(event.pool)
                if drain is not None and drain.draining:
                    what = "dispatched to a pool that is drained"
                    yield Violation("I20", event.job_id, what, (drain, event))
            case _:
                pass


RULES: Sequence[Callable[[Observed], Iterator[Violation]]] = (
    word_kept,
    renewed,
    recovered_as_written,
    refused_changes_nothing,
    settings_as_written,
    retired_as_promised,
    drained_get_nothing,
)
