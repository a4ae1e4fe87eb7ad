"""What an operator of a run is going to do, drawn from the seed."""

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from faults.simulation.clients import Plan

MODEL = "m"
"""The model that all pools serve. Nobody serves `OTHER`, which wants the same alias."""
OTHER = "n"
ALIAS = "also-m"

_OPERATED = 0.5
_ACTS_MAX = 6
_BY_ALIAS = 0.05
_BURSTS = 0.3
_BURST_MS = 1_000


class Act(enum.Enum):
    """What an operator does. The values are the kinds of `ActSent`.

    RELOAD is of the configuration file, RENEW of a pool: its engine is started anew.
    """

    REGISTER = "register"
    UPDATE = "update"
    RETIRE = "retire"
    ACTIVATE = "activate"
    DELETE = "delete"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    RELOAD = "reload"
    RENEW = "renew"


_OFTEN = {
    Act.REGISTER: 4,
    Act.UPDATE: 2,
    Act.RETIRE: 5,
    Act.ACTIVATE: 3,
    Act.DELETE: 3,
    Act.DRAIN: 5,
    Act.UNDRAIN: 3,
    Act.RELOAD: 3,
    Act.RENEW: 4,
}
_OF_MODELS = frozenset({Act.UPDATE, Act.RETIRE, Act.ACTIVATE, Act.DELETE})


@dataclass(frozen=True, slots=True)
class Deed:
    """One act: when, on what, and how. `subject` is a model or pool, or empty.

    `after_ms` is the grace of a retirement, or what attempts have in a drain or reload. The
    revision that it names is so far `ahead` of the one seen last; None: it names none. With `wrong`
    the request or file is bad. `looks_ms` are when the operator looks afterwards, from the act on.
    """

    name: str
    act: Act
    at_ms: int
    subject: str
    after_ms: int
    ahead: int | None
    wrong: bool
    capacity: int
    looks_ms: tuple[int, ...]


def deeds(chance: random.Random, span_ms: int, pools: Sequence[str]) -> tuple[Deed, ...]:
    """The acts of a run, in order of time; none in half of the runs."""
    if chance.random() >= _OPERATED:
        return ()
    kinds, weights = list(_OFTEN), list(_OFTEN.values())
    times = _times(chance, span_ms)
    acts = [chance.choices(kinds, weights)[0] for _ in times]
    _begin_with_one(acts)
    return tuple(
        _deed(chance, f"a{number}", act, at_ms, pools)
        for number, (act, at_ms) in enumerate(zip(acts, times, strict=True))
    )


def _times(chance: random.Random, span_ms: int) -> list[int]:
    """All over the run, or one right after the other: then some overlap."""
    within_ms = _BURST_MS if chance.random() < _BURSTS else span_ms
    begin_ms = chance.randrange(span_ms - within_ms + 1)
    count = chance.randint(1, _ACTS_MAX)
    return sorted(begin_ms + chance.randrange(within_ms) for _ in range(count))


def _begin_with_one(acts: list[Act]) -> None:
    """What is done to a model needs one: the first such act registers it."""
    for index, act in enumerate(acts):
        if act is Act.REGISTER:
            return
        if act in _OF_MODELS:
            acts[index] = Act.REGISTER
            return


def _deed(chance: random.Random, name: str, act: Act, at_ms: int, pools: Sequence[str]) -> Deed:
    model = MODEL if chance.random() < 0.8 else OTHER
    pool = chance.choice(pools)
    by_act = {Act.DRAIN: pool, Act.UNDRAIN: pool, Act.RENEW: pool, Act.RELOAD: ""}
    return Deed(
        name=name,
        act=act,
        at_ms=at_ms,
        subject=by_act.get(act, model),
        after_ms=chance.choice((0, 300, 3_000, 60_000)),
        ahead=chance.choice((None, None, 0, 1)),
        wrong=chance.random() < 0.2,
        capacity=chance.choice((1, 3, 8)),
        looks_ms=tuple(
            chance.choice((0, 1, 5, 300, 1_500)) for _ in range(chance.choice((0, 1, 2)))
        ),
    )


def by_alias(chance: random.Random, clients: dict[str, list[Plan]]) -> dict[str, list[Plan]]:
    """Some jobs ask for the alias, which names the model only while an operator says so."""
    return {
        name: [
            replace(plan, model=ALIAS if chance.random() < _BY_ALIAS else MODEL) for plan in plans
        ]
        for name, plans in clients.items()
    }
