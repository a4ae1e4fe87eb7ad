"""The checker: silent about a good run, and each rule finds what is planted into one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import pytest

from faults import history as h
from faults import operator_events as o
from faults.checker import Expect, check
from faults.delivery_rules import digest

TEXT = "héllo world"
WHERE = {"host": "h1", "pool": "p1", "replica": "p1-a"}
READER = {"client": "c1", "stream": "s1", "job_id": "j1"}


def _run() -> list[h.AnyEvent]:
    """One job's life over a crash of the orchestrator and one of its engine, and a victim."""
    return [
        h.Measured(at_ms=0, process="orchestrator", before=True, measures={"tasks": 3}),
        h.Recovered(at_ms=0, epoch=1, states={}),
        h.EnqueueSent(at_ms=1, client="c1", request_id="r1"),
        h.JournalAccepted(at_ms=2, job_id="j1", request_id="r1", seq=1, priority="INTERACTIVE"),
        h.EnqueueAcked(at_ms=3, client="c1", request_id="r1", job_id="j1"),
        h.EnqueueAcked(at_ms=3, client="c1", request_id="r1", job_id="j1"),
        h.JournalDispatched(at_ms=4, job_id="j1", attempt=1, pool="p1", replica="p1-a"),
        h.AttemptBegan(at_ms=5, **WHERE, job_id="j1", attempt=1, slots_total=1, text=TEXT),
        h.StreamOpened(at_ms=5, **READER),
        h.Started(at_ms=6, **READER, attempt=1),
        h.TextDelivered(at_ms=7, **READER, attempt=1, text_offset=0, text="hé"),
        h.JournalAccepted(at_ms=8, job_id="b1", request_id="r2", seq=2, priority="BATCH"),
        h.JournalAccepted(at_ms=8, job_id="b2", request_id="r3", seq=3, priority="BATCH"),
        h.QueueSeen(at_ms=8, queued=2, capacity=2),
        h.JournalAccepted(
            at_ms=9, job_id="j4", request_id="r4", seq=4, priority="INTERACTIVE", displaced="b1"
        ),
        h.JournalEnded(at_ms=9, job_id="b1", state="DROPPED"),
        h.Crashed(at_ms=10, process="orchestrator"),
        h.Restarted(at_ms=11, process="orchestrator"),
        h.Recovered(
            at_ms=11,
            epoch=2,
            states={"j1": "RUNNING", "b1": "DROPPED", "b2": "QUEUED", "j4": "QUEUED"},
        ),
        h.StatusSeen(at_ms=12, client="c1", job_id="j1", state="RUNNING", asked_ms=11),
        h.ReplicaGone(at_ms=13, **WHERE),
        h.JournalDispatched(at_ms=14, job_id="j1", attempt=2, pool="p1", replica="p1-b"),
        h.AttemptBegan(
            at_ms=15,
            **WHERE | {"replica": "p1-b"},
            job_id="j1",
            attempt=2,
            slots_total=1,
            text=TEXT,
        ),
        h.Resumed(at_ms=16, **READER, attempt=2, mode="VERIFIED_REPLAY", text_offset=3),
        h.TextDelivered(
            at_ms=17,
            **READER,
            attempt=2,
            text_offset=3,
            text="llo world",
            prefix_digest=digest("hé".encode()),
        ),
        h.AttemptEnded(at_ms=18, host="h1", pool="p1", replica="p1-b", job_id="j1", attempt=2),
        h.JournalEnded(at_ms=19, job_id="j1", state="FINISHED"),
        h.Outcome(
            at_ms=20,
            **READER,
            state="FINISHED",
            text_bytes=12,
            text_digest=digest(TEXT.encode()),
            tokens_out=4,
        ),
        h.JournalDispatched(at_ms=21, job_id="j4", attempt=1, pool="p1", replica="p1-b"),
        h.JournalDispatched(at_ms=22, job_id="b2", attempt=1, pool="p1", replica="p1-b"),
        h.Healed(at_ms=30),
        h.JournalEnded(at_ms=31, job_id="j4", state="CANCELLED"),
        h.CancelAnswered(at_ms=32, client="c1", job_id="j4", state="CANCELLED", asked_ms=31),
        h.JournalEnded(at_ms=33, job_id="b2", state="FAILED"),
        h.StatusSeen(at_ms=40, client="c2", job_id="j1", state="FINISHED", asked_ms=39),
        h.Measured(at_ms=50, process="orchestrator", before=False, measures={"tasks": 3}),
    ]


EXPECT = Expect(texts={"j1": TEXT}, tokens={"j1": 4}, must_finish=("j1",), settle_ms=10)


@dataclass(frozen=True)
class Planted:
    """A defect: the history that shows it, what was expected, the rule that it breaks."""

    events: list[h.AnyEvent]
    invariant: str
    expect: Expect = EXPECT


def _index(kind: type, **fields: object) -> int:
    found = (
        index
        for index, event in enumerate(_run())
        if isinstance(event, kind)
        and all(getattr(event, name) == value for name, value in fields.items())
    )
    return next(found)


def _changed(invariant: str, kind: type, match: dict[str, object], **new: object) -> Planted:
    events = _run()
    index = _index(kind, **match)
    events[index] = msgspec.structs.replace(events[index], **new)
    return Planted(events, invariant)


def _without(invariant: str, kind: type, **match: object) -> Planted:
    events = _run()
    del events[_index(kind, **match)]
    return Planted(events, invariant)


def _with(invariant: str, *extra: h.AnyEvent, after: int | None = None) -> Planted:
    events = _run()
    at = len(events) if after is None else after + 1
    return Planted(events[:at] + list(extra) + events[at:], invariant)


def _obeyed(at_ms: int, epoch: int) -> h.Obeyed:
    return h.Obeyed(at_ms=at_ms, host="h1", epoch=epoch)


def _late(**fields: object) -> dict[str, object]:
    return {"at_ms": 60, **fields}


PLANTED: dict[str, Callable[[], Planted]] = {
    "another outcome": lambda: _with("I1", h.Outcome(**READER, at_ms=60, state="FAILED")),
    "another end in the journal": lambda: _with(
        "I1", h.JournalEnded(at_ms=60, job_id="j1", state="CANCELLED")
    ),
    "a cancel that undoes an end": lambda: _with(
        "I1",
        h.CancelAnswered(at_ms=60, client="c1", job_id="j1", state="CANCELLED", asked_ms=59),
    ),
    "alive after the end": lambda: _with(
        "I1", h.StatusSeen(at_ms=60, client="c1", job_id="j1", state="RUNNING", asked_ms=59)
    ),
    "unknown after the acknowledgement": lambda: _with(
        "I1", h.StatusSeen(at_ms=60, client="c1", job_id="j1", state="NOT_FOUND", asked_ms=59)
    ),
    "not finished": lambda: replace(_with("I1"), expect=replace(EXPECT, must_finish=("j1", "b2"))),
    "a gap": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, text_offset=4),
    "a repetition": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, text_offset=2),
    "a wrong digest": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, prefix_digest=7),
    "a wrong whole digest": lambda: _changed("I2", h.Outcome, {}, text_digest=7),
    "text missing at the end": lambda: _changed("I2", h.Outcome, {}, text_bytes=13),
    "other text than expected": lambda: replace(
        _with("I2"), expect=replace(EXPECT, texts={"j1": "héllo World"})
    ),
    "a finished job cut short": lambda: replace(
        _with("I2"), expect=replace(EXPECT, texts={"j1": TEXT + "!"})
    ),
    "text that its engine did not make": lambda: _changed(
        "I2", h.AttemptBegan, {"attempt": 2}, text="héLLo world"
    ),
    "an end before that of its engine": lambda: _changed(
        "I2", h.AttemptBegan, {"attempt": 2}, text=TEXT + "!"
    ),
    "more tokens than asked for": lambda: _changed("I2", h.Outcome, {}, tokens_out=5),
    "two readers, two texts": lambda: replace(
        _with(
            "I2",
            h.StreamOpened(at_ms=60, client="c2", stream="s2", job_id="j1"),
            h.Started(at_ms=60, client="c2", stream="s2", job_id="j1", attempt=1),
            h.TextDelivered(
                at_ms=60,
                client="c2",
                stream="s2",
                job_id="j1",
                attempt=1,
                text_offset=0,
                text="hello",
            ),
        ),
        expect=replace(EXPECT, texts={}),
    ),
    "a defect that the reader found": lambda: _with(
        "I2",
        h.StreamBroken(at_ms=60, client="c2", stream="s2", job_id="j1", reason="STREAM_INTEGRITY"),
    ),
    "text lost that its host holds": lambda: _with(
        "I2",
        h.StreamBroken(at_ms=60, client="c2", stream="s2", job_id="j1", reason="RESUME_WINDOW"),
    ),
    "attempts mixed": lambda: _without("I3", h.Resumed),
    "text before `started`": lambda: _without("I3", h.Started),
    "the old attempt goes on": lambda: _changed("I3", h.TextDelivered, {"attempt": 2}, attempt=1),
    "started again amid the text": lambda: _with(
        "I3", h.Started(at_ms=17, **READER, attempt=3), after=_index(h.TextDelivered, attempt=2)
    ),
    "text after the end": lambda: _with(
        "I4",
        h.TextDelivered(at_ms=60, **READER, attempt=2, text_offset=12, text=""),
    ),
    "two ends on a stream": lambda: _with("I4", h.Outcome(**READER, at_ms=60, state="FINISHED")),
    "a younger job first": lambda: _with(
        "I5",
        h.JournalAccepted(at_ms=8, job_id="b3", request_id="r9", seq=9, priority="BATCH"),
        h.JournalDispatched(at_ms=8, job_id="b3", attempt=1, pool="p1", replica="p1-a"),
        h.JournalEnded(at_ms=8, job_id="b3", state="FINISHED"),
        after=_index(h.QueueSeen),
    ),
    "queue beyond its bound": lambda: _changed("I7", h.QueueSeen, {}, queued=3),
    "the wrong victim": lambda: Planted(
        [
            msgspec.structs.replace(event, displaced="b2")
            if isinstance(event, h.JournalAccepted) and event.displaced
            else event
            for event in _run()
        ],
        "I7",
    ),
    "dropped for nobody": lambda: _changed("I7", h.JournalAccepted, {"job_id": "j4"}, displaced=""),
    "a victim that is not told": lambda: _changed(
        "I7", h.JournalEnded, {"job_id": "b1"}, state="FAILED"
    ),
    "more attempts than slots": lambda: _with(
        "I8",
        h.AttemptBegan(
            at_ms=17, **WHERE | {"replica": "p1-b"}, job_id="j4", attempt=1, slots_total=1
        ),
        after=_index(h.TextDelivered, attempt=2),
    ),
    "an attempt twice": lambda: _with(
        "I9",
        h.AttemptBegan(
            at_ms=60, host="h1", pool="p1", replica="p1-b", job_id="j1", attempt=2, slots_total=4
        ),
    ),
    "an attempt without a record": lambda: _without("I9", h.JournalDispatched, attempt=2),
    "an attempt on another replica": lambda: _changed(
        "I9", h.AttemptBegan, {"attempt": 2}, replica="x"
    ),
    "an attempt number used again": lambda: _with(
        "I9", h.JournalDispatched(at_ms=60, job_id="j1", attempt=2, pool="p2", replica="p2-a")
    ),
    "two jobs for one request": lambda: _with(
        "I12", h.EnqueueAcked(at_ms=60, client="c1", request_id="r1", job_id="b2")
    ),
    "two accepts of one request": lambda: _with(
        "I12",
        h.JournalAccepted(at_ms=10, job_id="j9", request_id="r1", seq=9, priority="BATCH"),
        h.JournalEnded(at_ms=10, job_id="j9", state="FAILED"),
        after=_index(h.Healed),
    ),
    "acknowledged before it is durable": lambda: _without("I14", h.JournalAccepted, job_id="j1"),
    "told before it is durable": lambda: _without("I14", h.JournalEnded, job_id="j1"),
    "lost by a restart": lambda: _changed("I14", h.Recovered, {"epoch": 2}, states={}),
    "recovered to another end": lambda: _changed(
        "I14",
        h.Recovered,
        {"epoch": 2},
        states={"j1": "RUNNING", "b1": "QUEUED", "b2": "QUEUED", "j4": "QUEUED"},
    ),
    "recovered from nothing": lambda: _changed(
        "I14",
        h.Recovered,
        {"epoch": 2},
        states={"j1": "RUNNING", "b1": "DROPPED", "b2": "QUEUED", "j4": "QUEUED", "x": "QUEUED"},
    ),
    "a write of who was replaced": lambda: _changed(
        "I13", h.JournalEnded, {"job_id": "b2"}, epoch=1
    ),
    "a host that goes back to who was replaced": lambda: _with(
        "I13", _obeyed(70, epoch=2), _obeyed(71, epoch=1)
    ),
    "ended by the restart": lambda: _changed(
        "I14",
        h.Recovered,
        {"epoch": 2},
        states={"j1": "FAILED", "b1": "DROPPED", "b2": "QUEUED", "j4": "QUEUED"},
    ),
    "never ended": lambda: _without("I15", h.JournalEnded, job_id="b2"),
    "ended too late": lambda: _changed("I15", h.JournalEnded, {"job_id": "b2"}, at_ms=41),
    "a task left": lambda: _changed("I16", h.Measured, {"before": False}, measures={"tasks": 4}),
    "something that was not there before": lambda: _changed(
        "I16", h.Measured, {"before": False}, measures={"bindings": 1}
    ),
}


def test_a_host_that_starts_anew_has_seen_no_epoch() -> None:
    """It holds nothing that could come to harm."""
    crashed = h.Crashed(at_ms=71, process="h1")

    anew = _with("", _obeyed(70, epoch=2), crashed, _obeyed(72, epoch=1))
    later = _with("", _obeyed(70, epoch=2), _obeyed(71, epoch=3))

    assert check(anew.events, EXPECT) == []
    assert check(later.events, EXPECT) == []


def test_a_good_run_has_no_violation() -> None:
    """A run in which crashes cost nothing is left alone."""
    assert check(_run(), EXPECT) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_is_found(name: str) -> None:
    """Each rule finds its own defect, and says with which events."""
    planted = PLANTED[name]()

    violations = check(planted.events, planted.expect)

    assert planted.invariant in {violation.invariant for violation in violations}, violations


def test_a_declined_offer_excuses_who_was_overtaken() -> None:
    """A job that let an offer pass by the rule may be overtaken."""
    planted = PLANTED["a younger job first"]()
    events = [h.OfferDeclined(at_ms=0, job_id="b1"), h.OfferDeclined(at_ms=0, job_id="b2")]

    assert "I5" not in {v.invariant for v in check(events + planted.events, EXPECT)}


@pytest.mark.parametrize(("state", "found"), [("EXPIRED", set()), ("FAILED", {"I14"})])
def test_a_deadline_may_pass_while_nobody_serves(state: str, found: set[str]) -> None:
    """A start decides at once what was due; any other end must have been written before it."""
    events = _run()[:-1]
    index = _index(h.Recovered, epoch=2)
    states = {"j1": "RUNNING", "b1": "DROPPED", "b2": state, "j4": "QUEUED"}
    events[index] = msgspec.structs.replace(events[index], states=states)

    assert {v.invariant for v in check(events, EXPECT)} == found


@pytest.mark.parametrize(("grace_ends_ms", "found"), [(11, set()), (12, {"I14"})])
def test_the_grace_of_a_model_may_end_while_nobody_serves(
    grace_ends_ms: int, found: set[str]
) -> None:
    """Who waits for it fails at the start, and not before the grace is over."""
    events = _run()[:-1]
    index = _index(h.Recovered, epoch=2)
    states = {"j1": "RUNNING", "b1": "DROPPED", "b2": "FAILED", "j4": "QUEUED"}
    events[index] = msgspec.structs.replace(events[index], states=states)
    retired = o.JournalModel(
        at_ms=10,
        model="",
        state="RETIRED",
        revision=2,
        stated_by="",
        retired_by="",
        grace_ends_ms=grace_ends_ms,
    )

    wrong = check([*events[: index - 1], retired, *events[index - 1 :]], EXPECT)

    assert {v.invariant for v in wrong if v.invariant == "I14"} == found


FINISHED_AT_ITS_HOST: list[h.AnyEvent] = [
    h.JournalDispatched(at_ms=1, job_id="j1", attempt=1, pool="p1", replica="p1-a"),
    h.EndHeld(at_ms=2, host="h1", job_id="j1", attempt=1),
]
AGAIN = h.JournalDispatched(at_ms=4, job_id="j1", attempt=2, pool="p1", replica="p1-b")
FAILED = h.JournalEnded(at_ms=4, job_id="j1", state="FAILED", reason="WORKER_RESET")


@pytest.mark.parametrize("then", [AGAIN, FAILED])
@pytest.mark.parametrize(
    "excuse",
    [
        None,
        h.Crashed(at_ms=3, process="h2"),
        h.AttemptGivenUp(at_ms=3, job_id="j1", attempt=2),
        h.Crashed(at_ms=3, process="h1"),
        h.AttemptGivenUp(at_ms=3, job_id="j1", attempt=1),
    ],
)
def test_what_an_engine_finished_counts(then: h.AnyEvent, excuse: h.AnyEvent | None) -> None:
    """Unless its host is killed, or away for too long: only these are excused."""
    excused = excuse in (
        h.Crashed(at_ms=3, process="h1"),
        h.AttemptGivenUp(at_ms=3, job_id="j1", attempt=1),
    )
    between = [excuse] if excuse is not None else []

    found = [v for v in check([*FINISHED_AT_ITS_HOST, *between, then]) if v.invariant == "I21"]

    assert bool(found) is not excused


@pytest.mark.parametrize("state", ["FINISHED", "CANCELLED", "EXPIRED"])
def test_a_finished_attempt_may_come_too_late(state: str) -> None:
    """A job that was cancelled or had expired by then stays so; one that finished is as it was."""
    ended = msgspec.structs.replace(FAILED, state=state)

    assert check([*FINISHED_AT_ITS_HOST, ended]) == []


def test_the_end_of_an_earlier_attempt_counts_no_more() -> None:
    """Another one is the job's by then."""
    first, end = FINISHED_AT_ITS_HOST

    assert check([first, AGAIN, msgspec.structs.replace(end, at_ms=5), FAILED]) == []


@pytest.mark.parametrize("acknowledges", [False, True])
def test_a_text_may_be_let_go_once_its_outcome_was_acknowledged(*, acknowledges: bool) -> None:
    """A reader that comes too late for what another has acknowledged has lost nothing."""
    events = PLANTED["text lost that its host holds"]().events
    index = _index(h.StreamOpened)
    events[index] = msgspec.structs.replace(events[index], acknowledges=acknowledges)

    lost = [v for v in check(events, EXPECT) if "its host held" in v.what]

    assert bool(lost) is not acknowledges


@pytest.mark.parametrize(
    ("host", "killed_ms", "excused"),
    [("h1", 14, False), ("h1", 15, True), ("h1", 70, False), ("h2", 20, False)],
)
def test_only_the_host_of_the_last_attempt_need_live(
    *, host: str, killed_ms: int, excused: bool
) -> None:
    """What it followed on or repeated is held by it too, and the engine may die at any time."""
    events = PLANTED["text lost that its host holds"]().events
    killed = h.Crashed(at_ms=killed_ms, process=host)

    lost = [v for v in check([*events, killed], EXPECT) if "its host held" in v.what]

    assert bool(lost) is not excused


@pytest.mark.parametrize(
    ("had", "killed", "excused"),
    [("hé", "h9", False), ("HE!", "h9", True), ("HE!", "h8", False)],
)
def test_other_text_is_lost_with_its_host(*, had: str, killed: str, excused: bool) -> None:
    """Who has text of an attempt that died with its host cannot go on from what came after it."""
    events = _run()
    began = _index(h.AttemptBegan, attempt=1)
    text = had + TEXT[2:]
    events[began] = msgspec.structs.replace(events[began], host="h9", text=text)
    reader = {"client": "c2", "stream": "s2", "job_id": "j1"}
    events += [
        h.Crashed(at_ms=59, process=killed),
        h.StreamOpened(at_ms=60, **reader, attempt=1, text_offset=3),
        h.StreamBroken(at_ms=60, **reader, reason="RESUME_WINDOW"),
    ]

    lost = [v for v in check(events, EXPECT) if "its host held" in v.what]

    assert bool(lost) is not excused


def test_slack_is_allowed() -> None:
    """A resource may grow by what was granted."""
    planted = PLANTED["a task left"]()

    assert check(planted.events, replace(EXPECT, slack={"tasks": 1})) == []


def test_a_reader_that_joined_late_is_compared_with_the_expected_text() -> None:
    """A stream that began with text in hand is judged from there on."""
    reader = {"client": "c2", "stream": "s2", "job_id": "j1"}
    good = [
        h.StreamOpened(at_ms=60, **reader, attempt=2, text_offset=3),
        h.TextDelivered(at_ms=60, **reader, attempt=2, text_offset=3, text="llo world"),
        h.Outcome(at_ms=60, **reader, state="FINISHED", text_bytes=12, text_digest=1),
    ]
    bad = msgspec.structs.replace(good[1], text="LLO world")

    assert [v.what for v in check(_run() + good, EXPECT) if v.invariant == "I2"] == []
    assert "I2" in {v.invariant for v in check([*_run(), good[0], bad, good[2]], EXPECT)}
