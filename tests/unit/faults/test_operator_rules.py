"""The rules about operators: silent about a good run, and each finds what is planted into one."""

import pytest

from faults import history as h
from faults import operator_events as o
from faults.checker import check

ACTIVE = {"model": "m", "state": "ACTIVE", "revision": 1, "stated_by": "a0", "retired_by": ""}
RETIRED = ACTIVE | {"state": "RETIRED", "revision": 2, "retired_by": "a1"}


def _model(at_ms: int, grace_ends_ms: int | None = None, **fields: object) -> o.JournalModel:
    return o.JournalModel(at_ms=at_ms, grace_ends_ms=grace_ends_ms, **fields)  # type: ignore[arg-type]


def _sent(at_ms: int, act: str, kind: str, subject: str) -> o.ActSent:
    return o.ActSent(at_ms=at_ms, act=act, kind=kind, subject=subject)


def _done(at_ms: int, asked_ms: int, act: str, kind: str, subject: str) -> o.ActDone:
    return o.ActDone(at_ms=at_ms, asked_ms=asked_ms, act=act, kind=kind, subject=subject)


def _accepted(at_ms: int, job_id: str) -> h.JournalAccepted:
    return h.JournalAccepted(
        at_ms=at_ms, job_id=job_id, request_id=job_id, seq=at_ms, priority="BATCH", model="m"
    )


def _dispatched(at_ms: int, job_id: str, pool: str = "p2") -> h.JournalDispatched:
    return h.JournalDispatched(
        at_ms=at_ms, job_id=job_id, attempt=1, pool=pool, replica="r", decided_ms=at_ms
    )


def _began(at_ms: int, job_id: str, replica: str) -> list[h.AnyEvent]:
    at = {"at_ms": at_ms, "pool": "p3", "replica": replica, "job_id": job_id, "attempt": 1}
    return [h.JournalDispatched(**at), h.AttemptBegan(**at, host="h1", slots_total=9)]  # type: ignore[arg-type]


def _started(at_ms: int, **found: object) -> h.Recovered:
    return h.Recovered(at_ms=at_ms, epoch=1, states={}, **found)  # type: ignore[arg-type]


JOBS = ("j1", "j2")
GOOD: list[h.AnyEvent] = [
    o.FileWritten(at_ms=0, mark="f0", good=True),
    o.InForce(at_ms=0, mark="f0", started=True),
    _started(0, models={}, drains=()),
    _sent(10, "a0", "register", "m"),
    _model(11, **ACTIVE),
    _done(12, 10, "a0", "register", "m"),
    o.ModelSeen(at_ms=13, model="m", state="ACTIVE", revision=1, asked_ms=12),
    *(_accepted(14, job_id) for job_id in JOBS),
    _sent(20, "d0", "drain", "p1"),
    o.JournalDrain(at_ms=21, pool="p1", draining=True),
    _done(22, 20, "d0", "drain", "p1"),
    o.PoolSeen(at_ms=23, pool="p1", draining=True, asked_ms=22),
    _sent(30, "a1", "retire", "m"),
    _model(31, grace_ends_ms=2_000, **RETIRED),
    _done(32, 30, "a1", "retire", "m"),
    _sent(33, "a2", "delete", "m"),
    o.ActRefused(at_ms=34, act="a2", reason="MODEL_IN_USE"),
    _dispatched(40, "j1"),
    h.JournalEnded(at_ms=41, job_id="j1", state="FINISHED"),
    o.FileWritten(at_ms=50, mark="f1", good=True),
    _sent(50, "c1", "reload", "f1"),
    o.InForce(at_ms=51, mark="f1", started=False),
    _done(52, 50, "c1", "reload", "f1"),
    _started(60, models={"m": ("RETIRED", 2)}, drains=("p1",)),
    o.InForce(at_ms=60, mark="f1", started=True),
    h.JournalEnded(at_ms=2_000, job_id="j2", state="FAILED", reason="MODEL_RETIRED"),
    _sent(3_100, "d1", "undrain", "p1"),
    o.JournalDrain(at_ms=3_101, pool="p1", draining=False),
    _done(3_102, 3_100, "d1", "undrain", "p1"),
]

PLANTED: dict[str, tuple[str, int, h.AnyEvent]] = {
    "a model told before it is durable": (
        "I17",
        11,
        o.ModelSeen(at_ms=11, model="m", state="ACTIVE", revision=2, asked_ms=11),
    ),
    "a change acknowledged before it is durable": ("I17", 13, _done(13, 12, "a9", "update", "m")),
    "a retirement acknowledged before it is durable": (
        "I17",
        22,
        _done(22, 22, "a9", "retire", "m"),
    ),
    "an activation acknowledged and not done": ("I17", 40, _done(40, 39, "a9", "activate", "m")),
    "a deletion acknowledged and not done": ("I17", 40, _done(40, 39, "a9", "delete", "m")),
    "a drain acknowledged before it is durable": ("I17", 20, _done(20, 19, "d9", "drain", "p1")),
    "a drain told that is not": (
        "I17",
        15,
        o.PoolSeen(at_ms=15, pool="p1", draining=True, asked_ms=14),
    ),
    "a drain told as over": (
        "I17",
        25,
        o.PoolSeen(at_ms=25, pool="p1", draining=False, asked_ms=24),
    ),
    "settings acknowledged that are not in force": (
        "I17",
        53,
        _done(53, 52, "c9", "reload", "f9"),
    ),
    "a drain lost by a restart": (
        "I17",
        61,
        _started(61, models={"m": ("RETIRED", 2)}, drains=()),
    ),
    "a model lost by a restart": ("I17", 61, _started(61, models={}, drains=("p1",))),
    "a refused deletion done": ("I18", 35, _model(35, **ACTIVE | {"state": ""})),
    "a refused change done": (
        "I18",
        35,
        _model(35, **RETIRED | {"retired_by": "a2", "revision": 3}, grace_ends_ms=2_000),
    ),
    "a drain that nobody asked for": (
        "I18",
        25,
        o.JournalDrain(at_ms=25, pool="p2", draining=True),
    ),
    "an activation that nobody asked for": ("I18", 35, _model(35, **ACTIVE | {"revision": 3})),
    "settings that nobody wrote": ("I18", 53, o.InForce(at_ms=53, mark="f0", started=False)),
    "a job accepted for a retired model": ("I19", 35, _accepted(35, "j3")),
    "a start after the grace": ("I19", 3_050, _dispatched(3_050, "j2")),
    "a job failed within the grace": (
        "I19",
        45,
        h.JournalEnded(at_ms=45, job_id="j2", state="FAILED", reason="MODEL_RETIRED"),
    ),
    "a job at a drained pool": ("I20", 40, _dispatched(40, "j2", pool="p1")),
}


def _by_time(extra: h.AnyEvent, after_ms: int) -> list[h.AnyEvent]:
    place = sum(event.at_ms <= after_ms for event in GOOD)
    return [*GOOD[:place], extra, *GOOD[place:]]


def test_a_good_run_violates_nothing() -> None:
    """A model retired in order, a drain over a restart, a refused deletion, another file."""
    assert check(GOOD) == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    """Each defect is found by its rule."""
    invariant, after_ms, extra = PLANTED[name]

    found = check(_by_time(extra, after_ms))

    assert invariant in {violation.invariant for violation in found}


def test_a_file_with_problems_must_not_be_in_force() -> None:
    """Also where it is the present one."""
    wrong: list[h.AnyEvent] = [
        *GOOD,
        o.FileWritten(at_ms=4_000, mark="f2", good=False),
        o.InForce(at_ms=4_001, mark="f2", started=False),
    ]

    assert {violation.invariant for violation in check(wrong)} == {"I18"}


def test_an_answer_that_was_lost_leaves_all_open() -> None:
    """What was asked for and not answered may be done, later too, or not."""
    asked = _sent(70, "d2", "drain", "p2")
    unknown = o.ActUnknown(at_ms=71, act="d2", reason="UNAVAILABLE")
    late = o.JournalDrain(at_ms=90, pool="p2", draining=True)

    assert check([*GOOD[:-4], asked, unknown]) == []
    assert check([*GOOD[:-4], asked, unknown, late]) == []


@pytest.mark.parametrize(("replica", "found"), [("p3-a", {"I17"}), ("p3-b", set())])
def test_a_pool_that_was_reloaded_has_another_engine(replica: str, found: set[str]) -> None:
    """What began before the answer may be on the former one, nothing after it."""
    events: list[h.AnyEvent] = [
        *_began(100, "j1", "p3-a"),
        _sent(200, "e1", "renew", "p3"),
        *_began(201, "j2", "p3-a"),
        _done(300, 200, "e1", "renew", "p3"),
        *_began(301, "j3", replica),
    ]

    assert {violation.invariant for violation in check(events)} == found
