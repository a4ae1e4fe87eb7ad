"""Which output of ended jobs hosts keep."""

import pytest

from orchestrator_core.core.effects import SendRelease, SendVerdicts, Verdict
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    HeldAttempt,
    HostLost,
    OutputAcknowledged,
    OutputProgressed,
)
from orchestrator_core.core.records import TerminalRecord
from orchestrator_core.core.spec import Failover
from tests.unit.orchestrator_core.core.bench import Bench, only, wide

CALM = {"stale_after_ms": 10**6, "retention_ms": 10**5}


def released(effects: list[object]) -> list[str]:
    """Jobs whose host may forget them."""
    return [effect.job_id for effect in effects if isinstance(effect, SendRelease)]


def test_a_host_is_never_filled_by_what_has_ended() -> None:
    """Three quarters of what it may hold are kept; the attempt that ended first goes first."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=4)
    jobs = [f"j{n}" for n in range(6)]
    bench.enqueue(*jobs)

    gone = {job_id: released([*bench.end(job_id)]) for job_id in reversed(jobs)}

    assert gone == {"j5": [], "j4": [], "j3": [], "j2": ["j5"], "j1": ["j4"], "j0": ["j3"]}
    assert set(bench.core.jobs) == set(jobs), "the jobs are known for their whole retention"


def test_a_cancelled_job_counts_once_its_attempt_is_over() -> None:
    """While the engine works on it, it is one that runs."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=2)
    bench.enqueue("a", "b")
    bench.end("a")

    stopping = bench.step(CancelRequested("b", 0))
    stopped = bench.end("b")

    assert released([*stopping]) == []
    assert released([*stopped]) == ["a"]


def test_what_a_host_holds_of_a_job_that_ended_in_the_queue_is_released() -> None:
    """Its last attempt had failed before; retention ends for what that had written all the same."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=8)
    bench.enqueue("a")
    bench.fail("a", AttemptErrorKind.ENGINE_DIED)
    bench.step(CancelRequested("a", 0))
    bench.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=True)], held_attempts_max=8)

    assert released([*bench.at(10**5)]) == ["a"]


def test_what_a_host_brings_back_counts() -> None:
    """After a reconnection too the oldest go first; what still runs is not among them."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=8)
    bench.enqueue("a", "b", "c")
    bench.end("a")
    bench.end("b")
    held = [HeldAttempt(j, 1, "p", "p#1", ended=j != "c") for j in ("a", "b", "c")]

    effects = bench.register(wide(), held=held, held_attempts_max=2)

    assert released([*effects]) == ["a"]
    assert released([*bench.end("c")]) == ["b"]


def test_a_release_is_emitted_after_the_records_it_rests_on() -> None:
    """The end of the job is in the journal's hands before its output may go. LO-305."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=1)
    bench.enqueue("a")

    effects = bench.end("a")

    kinds = [type(effect) for effect in effects if isinstance(effect, TerminalRecord | SendRelease)]
    assert kinds == [TerminalRecord, SendRelease]


def test_a_host_that_names_no_bound_keeps_everything() -> None:
    """Until retention ends; then all is released once."""
    bench = Bench(wide(slots=100), **CALM)
    jobs = [f"j{n}" for n in range(50)]
    bench.enqueue(*jobs)

    assert not [gone for job_id in jobs for gone in released([*bench.end(job_id)])]
    assert sorted(released([*bench.at(10**5)])) == sorted(jobs)


def test_the_proof_of_what_a_live_job_delivered_is_not_released_for_room() -> None:
    """It is kept until the next attempt runs, however full its host is."""
    bench = Bench(wide("p"), **CALM)
    bench.enqueue("a", failover=Failover.VERIFIED_REPLAY)
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, 1))
    bench.fail("a", AttemptErrorKind.ENGINE_DIED)
    held = [HeldAttempt("a", 1, "p", "p#1", ended=True)]

    effects = bench.register(wide("p"), held=held, held_attempts_max=1)

    assert released([*effects]) == []


def test_acknowledged_output_takes_no_room() -> None:
    """Its host has forgotten it, so that the output of others may stay."""
    bench = Bench(**CALM)
    bench.register(wide(), held_attempts_max=2)
    bench.enqueue("a", "b", "c")
    bench.end("a")
    bench.step(OutputAcknowledged("a"))

    assert released([*bench.end("b")]) == []
    assert released([*bench.end("c")]) == ["b"]


@pytest.mark.parametrize("ended", [False, True])
def test_acknowledged_output_is_not_taken_over_again(*, ended: bool) -> None:
    """Its host was away, and comes back before the release has left, which then ends it untold."""
    bench = Bench(**CALM, reattach_grace_ms=100)
    bench.register(wide(), held_attempts_max=8)
    bench.enqueue("a")
    bench.step(CancelRequested("a", 0))
    bench.step(HostLost("h", 1))
    bench.at(200)
    acknowledged = bench.step(OutputAcknowledged("a"))

    back = bench.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=ended)])

    assert released([*acknowledged]) == ["a"]
    verdict = Verdict.RELEASE if ended else Verdict.ABORT
    assert [effect.verdicts for effect in only(back, SendVerdicts)] == [(("a", 1, verdict),)]
    assert not bench.state.attempts
