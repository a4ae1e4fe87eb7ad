"""A good run, and violations that are planted into it: one for each way to break an invariant."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from faults import history as h
from faults.checker import Expect
from faults.delivery_rules import digest

TEXT = "héllo world"
WHERE = {"host": "h1", "pool": "p1", "replica": "p1-a"}
READER = {"client": "c1", "stream": "s1", "job_id": "j1"}


def good_run() -> list[h.AnyEvent]:
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


def index_of(kind: type, **fields: object) -> int:
    """Where the first event of a kind with these fields stands in a good run."""
    found = (
        index
        for index, event in enumerate(good_run())
        if isinstance(event, kind)
        and all(getattr(event, name) == value for name, value in fields.items())
    )
    return next(found)


def _changed(invariant: str, kind: type, match: dict[str, object], **new: object) -> Planted:
    events = good_run()
    index = index_of(kind, **match)
    events[index] = msgspec.structs.replace(events[index], **new)
    return Planted(events, invariant)


def _without(invariant: str, kind: type, **match: object) -> Planted:
    events = good_run()
    del events[index_of(kind, **match)]
    return Planted(events, invariant)


def adding(invariant: str, *extra: h.AnyEvent, after: int | None = None) -> Planted:
    """A good run and more events: at its end, or after the event with an index."""
    events = good_run()
    at = len(events) if after is None else after + 1
    return Planted(events[:at] + list(extra) + events[at:], invariant)


def obeyed(at_ms: int, epoch: int) -> h.Obeyed:
    """The host obeys an epoch."""
    return h.Obeyed(at_ms=at_ms, host="h1", epoch=epoch)


def _late(**fields: object) -> dict[str, object]:
    return {"at_ms": 60, **fields}


PLANTED: dict[str, Callable[[], Planted]] = {
    "another outcome": lambda: adding("I1", h.Outcome(**READER, at_ms=60, state="FAILED")),
    "another end in the journal": lambda: adding(
        "I1", h.JournalEnded(at_ms=60, job_id="j1", state="CANCELLED")
    ),
    "a cancel that undoes an end": lambda: adding(
        "I1",
        h.CancelAnswered(at_ms=60, client="c1", job_id="j1", state="CANCELLED", asked_ms=59),
    ),
    "alive after the end": lambda: adding(
        "I1", h.StatusSeen(at_ms=60, client="c1", job_id="j1", state="RUNNING", asked_ms=59)
    ),
    "unknown after the acknowledgement": lambda: adding(
        "I1", h.StatusSeen(at_ms=60, client="c1", job_id="j1", state="NOT_FOUND", asked_ms=59)
    ),
    "not finished": lambda: replace(adding("I1"), expect=replace(EXPECT, must_finish=("j1", "b2"))),
    "a gap": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, text_offset=4),
    "a repetition": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, text_offset=2),
    "a wrong digest": lambda: _changed("I2", h.TextDelivered, {"attempt": 2}, prefix_digest=7),
    "a wrong whole digest": lambda: _changed("I2", h.Outcome, {}, text_digest=7),
    "text missing at the end": lambda: _changed("I2", h.Outcome, {}, text_bytes=13),
    "other text than expected": lambda: replace(
        adding("I2"), expect=replace(EXPECT, texts={"j1": "héllo World"})
    ),
    "a finished job cut short": lambda: replace(
        adding("I2"), expect=replace(EXPECT, texts={"j1": TEXT + "!"})
    ),
    "text that its engine did not make": lambda: _changed(
        "I2", h.AttemptBegan, {"attempt": 2}, text="héLLo world"
    ),
    "an end before that of its engine": lambda: _changed(
        "I2", h.AttemptBegan, {"attempt": 2}, text=TEXT + "!"
    ),
    "more tokens than asked for": lambda: _changed("I2", h.Outcome, {}, tokens_out=5),
    "two readers, two texts": lambda: replace(
        adding(
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
    "a defect that the reader found": lambda: adding(
        "I2",
        h.StreamBroken(at_ms=60, client="c2", stream="s2", job_id="j1", reason="STREAM_INTEGRITY"),
    ),
    "text lost that its host holds": lambda: adding(
        "I2",
        h.StreamBroken(at_ms=60, client="c2", stream="s2", job_id="j1", reason="RESUME_WINDOW"),
    ),
    "attempts mixed": lambda: _without("I3", h.Resumed),
    "text before `started`": lambda: _without("I3", h.Started),
    "the old attempt goes on": lambda: _changed("I3", h.TextDelivered, {"attempt": 2}, attempt=1),
    "started again amid the text": lambda: adding(
        "I3", h.Started(at_ms=17, **READER, attempt=3), after=index_of(h.TextDelivered, attempt=2)
    ),
    "text after the end": lambda: adding(
        "I4",
        h.TextDelivered(at_ms=60, **READER, attempt=2, text_offset=12, text=""),
    ),
    "two ends on a stream": lambda: adding("I4", h.Outcome(**READER, at_ms=60, state="FINISHED")),
    "a younger job first": lambda: adding(
        "I5",
        h.JournalAccepted(at_ms=8, job_id="b3", request_id="r9", seq=9, priority="BATCH"),
        h.JournalDispatched(at_ms=8, job_id="b3", attempt=1, pool="p1", replica="p1-a"),
        h.JournalEnded(at_ms=8, job_id="b3", state="FINISHED"),
        after=index_of(h.QueueSeen),
    ),
    "queue beyond its bound": lambda: _changed("I7", h.QueueSeen, {}, queued=3),
    "the wrong victim": lambda: Planted(
        [
            msgspec.structs.replace(event, displaced="b2")
            if isinstance(event, h.JournalAccepted) and event.displaced
            else event
            for event in good_run()
        ],
        "I7",
    ),
    "dropped for nobody": lambda: _changed("I7", h.JournalAccepted, {"job_id": "j4"}, displaced=""),
    "a victim that is not told": lambda: _changed(
        "I7", h.JournalEnded, {"job_id": "b1"}, state="FAILED"
    ),
    "more attempts than slots": lambda: adding(
        "I8",
        h.AttemptBegan(
            at_ms=17, **WHERE | {"replica": "p1-b"}, job_id="j4", attempt=1, slots_total=1
        ),
        after=index_of(h.TextDelivered, attempt=2),
    ),
    "an attempt twice": lambda: adding(
        "I9",
        h.AttemptBegan(
            at_ms=60, host="h1", pool="p1", replica="p1-b", job_id="j1", attempt=2, slots_total=4
        ),
    ),
    "an attempt without a record": lambda: _without("I9", h.JournalDispatched, attempt=2),
    "an attempt on another replica": lambda: _changed(
        "I9", h.AttemptBegan, {"attempt": 2}, replica="x"
    ),
    "an attempt number used again": lambda: adding(
        "I9", h.JournalDispatched(at_ms=60, job_id="j1", attempt=2, pool="p2", replica="p2-a")
    ),
    "two jobs for one request": lambda: adding(
        "I12", h.EnqueueAcked(at_ms=60, client="c1", request_id="r1", job_id="b2")
    ),
    "two accepts of one request": lambda: adding(
        "I12",
        h.JournalAccepted(at_ms=10, job_id="j9", request_id="r1", seq=9, priority="BATCH"),
        h.JournalEnded(at_ms=10, job_id="j9", state="FAILED"),
        after=index_of(h.Healed),
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
    "a host that goes back to who was replaced": lambda: adding(
        "I13", obeyed(70, epoch=2), obeyed(71, epoch=1)
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
