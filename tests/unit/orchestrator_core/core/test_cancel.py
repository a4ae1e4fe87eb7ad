"""Cancel at every point of a job's life: one end, a true answer, a free slot. ORCH-3026."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.effects import (
    Effect,
    JobEnded,
    JobStarted,
    ReplyState,
    SendCancel,
    SendStart,
)
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    HeldAttempt,
    HostLost,
    OutputProgressed,
)
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.outcome import Finish, Reason, Usage
from orchestrator_core.core.records import DispatchRecord, TerminalRecord
from orchestrator_core.core.spec import Failover
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.journals import journal

Move = Callable[[Bench], list[Effect]]


def cancel(bench: Bench) -> list[Effect]:
    """Somebody cancels the job."""
    return bench.step(CancelRequested("a", 0))


def _queued() -> Bench:
    bench = Bench(wide(slots=1), queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU)
    bench.enqueue("other", "a")
    return bench


def _dispatched() -> Bench:
    bench = Bench(wide(slots=1))
    bench.enqueue("a")
    return bench


def _running() -> Bench:
    bench = _dispatched()
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, 1))
    return bench


def _finished() -> Bench:
    bench = _running()
    bench.end("a")
    return bench


def _cancelled() -> Bench:
    bench = _running()
    cancel(bench)
    return bench


def _expired() -> Bench:
    bench = Bench(wide(slots=1), wall_timeout_ms=50)
    bench.enqueue("a")
    bench.at(50)
    return bench


def _dropped() -> Bench:
    bench = _queued()
    bench.enqueue("newer")
    return bench


def _failed() -> Bench:
    bench = _running()
    bench.fail("a", AttemptErrorKind.CONTEXT_OVERFLOW)
    return bench


IN_STATE = {
    JobState.QUEUED: _queued,
    JobState.DISPATCHED: _dispatched,
    JobState.RUNNING: _running,
    JobState.FINISHED: _finished,
    JobState.CANCELLED: _cancelled,
    JobState.EXPIRED: _expired,
    JobState.DROPPED: _dropped,
    JobState.FAILED: _failed,
}


@pytest.mark.parametrize("before", list(JobState))
def test_cancel_in_every_state(before: JobState) -> None:
    """A live job is cancelled; one that has ended keeps its end, and the answer says which."""
    bench = IN_STATE[before]()
    assert bench.core.jobs["a"].state is before

    effects = cancel(bench)
    again = cancel(bench)

    after = before if before.terminal else JobState.CANCELLED
    assert bench.core.jobs["a"].state is after
    assert len(only(effects, ReplyState)) == 1
    told = [e for e in effects if isinstance(e, TerminalRecord | JobEnded) and e.job_id == "a"]
    assert len(told) == (0 if before.terminal else 2)
    holds_slot = before in (JobState.DISPATCHED, JobState.RUNNING)
    assert len(only(effects, SendCancel)) == holds_slot
    assert again == [ReplyState(0, "a")]


def _died(bench: Bench) -> list[Effect]:
    return bench.fail("a", AttemptErrorKind.ENGINE_DIED)


def _lost(bench: Bench) -> list[Effect]:
    return bench.step(HostLost("h", bench._links))


def _back(bench: Bench, running: Iterable[Attempt] = ()) -> list[Effect]:
    """The host is back, with everything that it runs."""
    held = [*running] or list(bench.state.attempts.values())
    return bench.register(
        *(wide("p", slots=1), wide("q", slots=1)),
        held=[HeldAttempt(a.job_id, a.number, a.pool_id, a.replica_id, ended=False) for a in held],
    )


# A job that waits, runs, survives a cut, loses its engine, is continued elsewhere, and ends.
LIFE: tuple[Move, ...] = (
    lambda bench: bench.enqueue("a", failover=Failover.CONTINUE),
    lambda bench: bench.end("other"),
    lambda bench: bench.step(AttemptStarted("a", 1)),
    lambda bench: bench.step(OutputProgressed("a", 1, 1)),
    _lost,
    _back,
    lambda bench: bench.step(OutputProgressed("a", 1, 2)),
    _died,
    lambda bench: bench.end("another"),
    lambda bench: bench.step(AttemptStarted("a", 2)),
    lambda bench: bench.step(OutputProgressed("a", 2, 3)),
    lambda bench: bench.end("a", 2),
)


def _confirm_all(bench: Bench) -> list[Effect]:
    """The host ends everything: what it was told to stop, and the rest well."""
    effects = []
    for key in list(bench.state.attempts):
        finish = Finish.EOS if bench.core.jobs[key[0]].live else Finish.CANCELLED
        effects += bench.step(AttemptEnded(*key, 99, finish=finish, text_bytes=3))
    return effects


@given(st.sets(st.integers(1, len(LIFE)), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_a_cancel_between_any_two_steps(at: set[int], restart: bool, early: bool) -> None:
    """Whatever the host says afterwards, and whether or not orchestratord starts anew.

    With `early` the host confirms before the rest of the story, else after it.
    """
    bench = Bench(wide("p", slots=1), wide("q", slots=1))
    effects = bench.enqueue("other", "another")
    for number, move in enumerate(LIFE, start=1):
        effects += move(bench)
        if number in at:
            effects += cancel(bench)
            if early and not bench.core.jobs["a"].live:
                effects += _confirm_all(bench)
    if restart:
        running, bench = list(bench.state.attempts.values()), Bench()
        bench.step(journal(*effects))
        effects += _back(bench, running)
    effects += _confirm_all(bench)

    job = bench.core.jobs["a"]
    ended = [e for e in only(effects, TerminalRecord) if e.job_id == "a"]
    assert [record.state for record in ended] == [job.state]
    finished_first = min(at) == len(LIFE)
    assert job.state is (JobState.FINISHED if finished_first else JobState.CANCELLED)
    over = effects.index(ended[0])
    later = [e for e in effects[over:] if isinstance(e, DispatchRecord | JobStarted | SendStart)]
    assert not [e for e in later if getattr(e, "job_id", "") == "a"]
    assert not bench.core.live_attempts
    assert all(pool.slots_free() == 1 for pool in bench.core.pools.values())


@pytest.mark.parametrize("failover", Failover)
@pytest.mark.parametrize("ended_meanwhile", [True, False])
def test_a_cancel_that_was_not_written_is_what_the_host_says(
    failover: Failover, *, ended_meanwhile: bool
) -> None:
    """A crash took its record, but not the order: the job ends as its client asked, once."""
    before = Bench(wide())
    effects = before.enqueue("a", failover=failover)
    before.step(AttemptStarted("a", 1))
    before.step(OutputProgressed("a", 1, 1))
    (order,) = only(cancel(before), SendCancel)
    after = Bench()
    after.step(journal(*effects))
    after.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=ended_meanwhile)])
    after.step(AttemptStarted("a", 1))

    told = after.step(_stopped_by(order))
    again = after.step(_stopped_by(order))

    assert order.job_cancelled
    assert [end.state for end in only(told, JobEnded)] == [JobState.CANCELLED]
    assert [record.usage.tokens_out for record in only(told, TerminalRecord)] == [3]
    assert not again


def test_an_attempt_that_alone_was_given_up_does_not_cancel_its_job() -> None:
    """An order that says nothing of the job, or a host that makes it up: it ends as by a fault."""
    recovered = Bench()
    recovered.step(journal(*Bench(wide()).enqueue("a", failover=Failover.FAIL)))
    recovered.register(wide(), held=[HeldAttempt("a", 1, "p", "p#1", ended=False)])
    live = _running()

    told = recovered.step(_stopped_by(SendCancel("h", "a", 1)))
    made_up = live.step(_stopped_by(SendCancel("h", "a", 1, job_cancelled=True)))

    for ends in (only(told, JobEnded), only(made_up, JobEnded)):
        assert [(end.state, end.outcome.error.reason) for end in ends if end.outcome.error] == [
            (JobState.FAILED, Reason.WORKER_RESET)
        ]


def test_an_order_says_whether_the_job_was_cancelled() -> None:
    """One whose time was over was not."""
    (order,) = only(_expired_now(), SendCancel)

    assert not order.job_cancelled


def _expired_now() -> list[Effect]:
    bench = Bench(wide(slots=1), wall_timeout_ms=50)
    bench.enqueue("a")
    return bench.at(50)


def _stopped_by(order: SendCancel) -> AttemptEnded:
    """What a host tells of an attempt that an order stopped after a little output."""
    return AttemptEnded(
        order.job_id,
        order.attempt,
        1,
        finish=Finish.CANCELLED,
        usage=Usage(tokens_out=3),
        text_bytes=5,
        pieces=1,
        job_cancelled=order.job_cancelled,
    )
