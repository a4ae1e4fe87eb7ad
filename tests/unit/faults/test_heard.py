"""What runs of the simulation note about orders: each word of each pool, after the one before."""

from dataclasses import replace

from faults.simulation.command import orders
from faults.simulation.heard import Heard
from faults.simulation.tape import TapedCore
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptStarted,
    EnqueueRequested,
    Event,
    HeldAttempt,
    HostLost,
    HostRegistered,
    SnapshotsReported,
)
from orchestrator_core.core.outcome import Finish
from orchestrator_core.core.snapshot import PoolState
from tests.unit.orchestrator_core.core.build import snapshot, spec

POOL = snapshot(replica_id="p#1", version=1)
ANOTHER = replace(POOL, replica_id="p#2", state=PoolState.STARTING)
END = AttemptEnded("a", 1, 3, finish=Finish.EOS)
HELD = HeldAttempt("a", 1, "p", "p#1", ended=True)


def _heard(*events: Event) -> Heard:
    """What a core notes that has a job with an attempt on the pool."""
    core = TapedCore(CoreConfig())
    begun = (
        HostRegistered("h", 1, (POOL,)),
        EnqueueRequested(spec("a"), 1),
        AttemptStarted("a", 1),
    )
    for event in (*begun, *events):
        core.step(event, 0)
    return core.heard


def _words(heard: Heard) -> list[str]:
    return [word for _, word in heard.pairs]


def test_the_usual_order() -> None:
    """A host comes, a job is sent, starts and ends."""
    heard = _heard(END)

    assert list(heard.pairs) == [
        ("nothing", "back"),
        ("back", "start"),
        ("start", "started"),
        ("started", "finished"),
    ]


def test_an_end_that_a_report_overtakes() -> None:
    """The report of the next engine comes first."""
    assert _words(_heard(SnapshotsReported("h", (ANOTHER,), 0), END))[3:] == [
        "anew",
        "finished overtaken",
    ]


def test_an_end_that_is_told_after_a_registration() -> None:
    """The host itself says that it has another engine, and an end to tell."""
    back = HostRegistered("h", 2, (ANOTHER,), (HELD,))

    assert _words(_heard(HostLost("h", 1), back, END))[3:] == [
        "lost",
        "back anew with ends",
        "finished former",
    ]


def test_orders_are_told_with_what_was_never_heard() -> None:
    """So that one sees what seeds do not judge."""
    told = orders(_heard(END).pairs)

    assert "finished 1: after started 1\n    never after back, finished, nothing, start\n" in told
