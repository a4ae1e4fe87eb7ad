"""A frozen state is complete, independent, and goes on as the original would."""

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest

from orchestrator_core.core.checkpoint import LEFT_OUT, UNMOVED, fields_of_state, layout
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.freezing import Freezers, Numbered
from orchestrator_core.core.machine import Core
from orchestrator_core.core.state import State
from orchestrator_core.recorder.codec import decode_frozen, encode_frozen, state_hash
from tests.unit.orchestrator_core.core.worlds import played

SEEDS = range(1, 41)


def through_bytes(core: Core) -> Core:
    """A second core, by way of a checkpoint's bytes."""
    frozen = decode_frozen(b"".join(encode_frozen(core.freeze())))
    return Core.thawed(frozen, core.config)


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object of the core holds, by name; derived and transient fields excepted."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif not isinstance(value, enum.Enum) and (is_dataclass(value) or hasattr(value, "__slots__")):
        kind = type(value)
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind.__slots__
        skipped = LEFT_OUT.get(kind, {})
        yield from ((f".{name}", getattr(value, name)) for name in names if name not in skipped)


def changes(value: Any) -> bool:
    """True for what a step may alter in place."""
    if isinstance(value, type | enum.Enum):
        return False
    if is_dataclass(value):
        return not type(value).__dataclass_params__.frozen
    return isinstance(value, dict | list | set | deque) or hasattr(value, "__slots__")


def walk(value: Any, where: str, seen: dict[int, str]) -> Iterator[tuple[str, Any, str | None]]:
    """Every object that can be reached, its place, and its first place if it was met before."""
    earlier = seen.get(id(value)) if changes(value) else None
    yield where, value, earlier
    if earlier is None:
        seen[id(value)] = where
        for name, item in members(value):
            yield from walk(item, where + name, seen)


def shown(value: Any) -> str:
    """A leaf as text; sets have no order of their own."""
    return repr(sorted(value)) if isinstance(value, set) else repr(value)


def picture(state: State) -> list[tuple[str, str, str | None]]:
    """All that a state holds, in order; of a shared object its first place the second time."""
    return [
        (where, "" if list(members(value)) else shown(value), earlier)
        for where, value, earlier in walk(state, "state", {})
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_thawed_core_goes_on_as_the_original(seed: int) -> None:
    """Equal answers to everything that follows, and an equal state in the end. LO-207."""
    world = played(seed)
    twin = through_bytes(world.core)
    begin = len(world.inputs)

    world.run(160)

    answers = [twin.step(event, now_ms) for event, now_ms in world.inputs[begin:]]
    assert repr(answers) == repr(world.outputs[begin:])
    assert state_hash(twin.freeze()) == state_hash(world.core.freeze())
    assert twin.next_deadline_ms() == world.core.next_deadline_ms()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_thawed_state_holds_all_that_the_original_holds(seed: int) -> None:
    """Every field of every object, in the same order, shared objects at the same places."""
    world = played(seed)

    twin = through_bytes(world.core)

    assert picture(twin._state) == picture(world.core._state)


def test_no_list_or_dict_is_held_in_two_places() -> None:
    """Objects come back as one, containers would come back as two."""
    for seed in SEEDS:
        for where, value, earlier in walk(played(seed).core._state, "state", {}):
            container = isinstance(value, dict | list | set | deque)
            assert earlier is None or not container, (where, earlier)


def test_later_steps_do_not_reach_a_frozen_state() -> None:
    """The recorder's thread encodes it while the core goes on."""
    for seed in SEEDS:
        world = played(seed)
        frozen = world.core.freeze()
        before = state_hash(frozen)

        world.run(80)

        assert state_hash(frozen) == before


def test_every_field_of_the_state_is_stored_or_named_as_left_out() -> None:
    """What is not stored is named with its reason; a name that is no field is a mistake. LO-207."""
    stored = {name for name, kept in fields_of_state().items() if kept}
    left_out = set(LEFT_OUT[State])

    assert stored | left_out == {f.name for f in fields(State)}
    assert not stored & left_out
    known = {"config", "effects", "feasible_cache", "on_placement", "stepping"}
    assert left_out == known, "say why, then add it here"


def test_what_never_moves_names_tables_in_order_of_arrival() -> None:
    """A name that is none would cost a long stop, and nobody would see why."""
    fields_of = {f"State.{f.name}": f.type for f in fields(State)}

    assert {"OrderedDict" in str(fields_of[name]) for name in UNMOVED} == {True}


def test_what_moves_comes_back_in_its_order() -> None:
    """Who was served last is the last to be forgotten; the dict below knows only who came last."""
    core = Core(CoreConfig())
    core._state.served.update(anna=1.0, ben=2.0, cleo=3.0)
    core._state.served.move_to_end("anna")

    twin = through_bytes(core)

    assert list(twin._state.served) == ["ben", "cleo", "anna"]


def test_the_layout_names_every_table() -> None:
    """Two builds whose tables differ cannot be mistaken for one another."""
    for name in ("State(", "Job(", "Attempt(", "Pool(", "Queue(", "Predictor(", "RankedSet("):
        assert name in layout()


@dataclass(slots=True)
class Inner:
    """A table of a later version."""

    notes: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Outer:
    """A state of a later version."""

    inner: Inner
    maybe: Inner | None
    pairs: list[tuple[int, Inner]]
    again: dict[str, Inner]
    marks: dict[str, int] | None = None


def test_a_new_table_is_copied_without_being_named_anywhere() -> None:
    """Freezers follow from type hints alone."""
    freezers = Freezers(Outer, {})
    inner, other = Inner({"a": [1]}), Inner({"b": []})
    outer = Outer(inner, None, [(7, other)], {"same": inner}, {"m": 1})

    frozen = freezers.freeze(outer)
    inner.notes["a"].append(2)
    other.notes.clear()
    thawed = freezers.thaw(frozen)

    assert isinstance(thawed, Outer)
    expected = Inner({"a": [1]})
    assert thawed == Outer(expected, None, [(7, Inner({"b": []}))], {"same": expected}, {"m": 1})
    assert thawed.again["same"] is thawed.inner


@dataclass(slots=True)
class Foreign:
    """A table with something that no checkpoint can hold."""

    call: Iterator[int]


def test_what_cannot_be_stored_is_refused_by_name() -> None:
    """A field is never left out in silence."""
    with pytest.raises(TypeError, match=r"Foreign\.call"):
        Freezers(Foreign, {})


def test_numbers_are_given_in_the_order_of_meeting() -> None:
    """Equal objects that are not the same get different numbers; None gets none."""
    numbered, first, second = Numbered(), Inner(), Inner()

    assert numbered.numbers([first, None, second, first]) == [0, None, 1, 0]
    assert numbered.numbers([second, None]) == [1, None]
