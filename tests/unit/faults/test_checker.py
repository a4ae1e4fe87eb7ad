"""The checker: silent about a good run, and each rule finds what is planted into one."""

from dataclasses import replace

import msgspec
import pytest

from faults import history as h
from faults import operator_events as o
from faults.checker import check
from tests.unit.faults.planted import EXPECT, PLANTED, TEXT, adding, good_run, index_of, obeyed


def test_a_host_that_starts_anew_has_seen_no_epoch() -> None:
    """It holds nothing that could come to harm."""
    crashed = h.Crashed(at_ms=71, process="h1")

    anew = adding("", obeyed(70, epoch=2), crashed, obeyed(72, epoch=1))
    later = adding("", obeyed(70, epoch=2), obeyed(71, epoch=3))

    assert check(anew.events, EXPECT) == []
    assert check(later.events, EXPECT) == []


def test_a_good_run_has_no_violation() -> None:
    """A run in which crashes cost nothing is left alone."""
    assert check(good_run(), EXPECT) == []


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
    events = good_run()[:-1]
    index = index_of(h.Recovered, epoch=2)
    states = {"j1": "RUNNING", "b1": "DROPPED", "b2": state, "j4": "QUEUED"}
    events[index] = msgspec.structs.replace(events[index], states=states)

    assert {v.invariant for v in check(events, EXPECT)} == found


@pytest.mark.parametrize(("grace_ends_ms", "found"), [(11, set()), (12, {"I14"})])
def test_the_grace_of_a_model_may_end_while_nobody_serves(
    grace_ends_ms: int, found: set[str]
) -> None:
    """Who waits for it fails at the start, and not before the grace is over."""
    events = good_run()[:-1]
    index = index_of(h.Recovered, epoch=2)
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
    index = index_of(h.StreamOpened)
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
    events = good_run()
    began = index_of(h.AttemptBegan, attempt=1)
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

    assert [v.what for v in check(good_run() + good, EXPECT) if v.invariant == "I2"] == []
    assert "I2" in {v.invariant for v in check([*good_run(), good[0], bad, good[2]], EXPECT)}
