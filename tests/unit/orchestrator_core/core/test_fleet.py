"""Hosts, snapshots and incarnations. LO-203, ORCH-3010."""

from dataclasses import replace

from orchestrator_core.core.effects import SendCancel, SendDrain, SendVerdicts, Verdict
from orchestrator_core.core.events import (
    CancelRequested,
    HeldAttempt,
    HostLost,
    HostRegistered,
    OutputProgressed,
    PoolDrainRequested,
)
from orchestrator_core.core.lifecycle import REFUSALS_MAX
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot


def held(job_id: str, *, ended: bool = False, boot: int = 1) -> HeldAttempt:
    """The first attempt of a job at pool p."""
    return HeldAttempt(job_id, 1, "p", f"p#{boot}", ended)


def test_old_reports_change_nothing() -> None:
    """Neither a lower version, nor a former incarnation, nor a pool of another host."""
    bench = Bench(wide(version=5))
    bench.report(wide(version=1, replica_id="p#2"))

    bench.report(wide(slots=1, version=9))
    bench.report(wide(slots=2, version=0, replica_id="p#2"))
    bench.report(wide(slots=3, version=9, replica_id="p#2", host_id="g"))
    bench.report(wide("unknown"))

    assert bench.core.pools["p"].snapshot == wide(version=1, replica_id="p#2")
    assert list(bench.core.pools) == ["p"]


def test_a_report_cannot_be_true_later_than_now() -> None:
    """A clock that runs ahead does not keep a pool fresh for ever."""
    bench = Bench(wide(), stale_after_ms=100)

    bench.report(wide(version=2), as_of_ms=10**9)

    bench.at(101)
    assert not bench.state.available


def test_a_pool_stays_with_the_host_that_is_connected() -> None:
    """Another host with a pool of that id is refused it by name, and gets its other pools."""
    bench = Bench(wide())
    bench.enqueue("a")

    effects = bench.register(
        wide(replica_id="p#2", host_id="g"), wide("q", host_id="g"), host="g", held=[held("x")]
    )

    (answer,) = only(effects, SendVerdicts)
    ((pool_id, why),) = answer.refused
    assert pool_id == "p"
    assert "pool_id p is in use at host h" in why
    assert "configuration of g or of h" in why
    assert answer.verdicts == (("x", 1, Verdict.ABORT),)
    assert bench.core.pools["p"].snapshot == wide()
    assert bench.core.pools["q"].connected
    job = bench.core.jobs["a"]
    assert job.attempt is not None
    assert (job.attempt.number, job.attempt.host_id) == (1, "h")
    bench.end("a")
    assert job.state is JobState.FINISHED


def test_a_pool_is_taken_over_once_nothing_can_come_back() -> None:
    """A lost host is waited for as long as it may hold attempts; then its pool may move."""
    bench = Bench(wide(), reattach_grace_ms=100)
    bench.enqueue("a")
    bench.step(HostLost("h", 1))
    moved = wide(replica_id="p#2", host_id="g")
    bench.register(moved, host="g")
    assert bench.core.pools["p"].snapshot == wide()
    assert bench.core.pool_refusal("g", "p") is not None

    bench.at(100)
    assert bench.core.pool_refusal("g", "p") is None
    bench.register(moved, host="g")

    assert bench.core.pools["p"].connected
    job = bench.core.jobs["a"]
    assert job.attempt is not None
    assert (job.attempt.number, job.attempt.host_id) == (2, "g")
    assert bench.core.live_attempts == 1
    bench.step(HostLost("h", 1))
    assert bench.core.pools["p"].connected, "the former host has no part in it"


def test_a_pool_on_another_host_is_not_believed_to_be_as_fast_as_it_was() -> None:
    """LO-206: its name moved, its devices did not."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(OutputProgressed("a", 1, 1))
    bench.at(9_000)
    bench.end("a")
    slow = bench.core.tokens_per_s(bench.core.pools["p"])
    bench.step(HostLost("h", 1))

    bench.register(wide(replica_id="p#9", host_id="g"), host="g")

    assert slow < bench.core.tokens_per_s(bench.core.pools["p"]) == 20.0


def test_a_pool_that_is_no_longer_registered_is_gone() -> None:
    """Its jobs wait for another one; what was learned about it is forgotten."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a")

    bench.register(wide("q"))

    assert list(bench.core.pools) == ["q"]
    assert bench.core.jobs["a"].attempt is not None
    assert bench.core.jobs["a"].attempt.pool_id == "q"


def test_the_end_of_a_dead_incarnations_attempt_is_still_heard() -> None:
    """A returning host holds the whole output of an attempt whose engine has gone since."""
    bench = Bench(wide(slots=1))
    bench.enqueue("a", "b")
    bench.step(HostLost("h", 1))

    effects = bench.register(
        wide(slots=1, replica_id="p#2"), held=[held("a", ended=True), held("b")]
    )

    (answer,) = only(effects, SendVerdicts)
    assert answer.verdicts == (("a", 1, Verdict.ADOPT), ("b", 1, Verdict.ABORT))
    assert [d.job_id for d in only(effects, DispatchRecord)] == ["b"], "its slot is free"
    bench.end("a")
    assert bench.core.jobs["a"].state is JobState.FINISHED


def test_an_attempt_that_ended_at_its_host_takes_no_slot() -> None:
    """LO-203: the host says so as it registers; the slot is free before the end was read."""
    bench = Bench(wide(slots=1))
    bench.enqueue("a", "b")
    bench.step(HostLost("h", 1))

    effects = bench.register(wide(slots=1, version=2), held=[held("a", ended=True)])

    assert [d.job_id for d in only(effects, DispatchRecord)] == ["b"]
    assert list(bench.core.pools["p"].own) == [("b", 1)]
    bench.end("a")
    assert bench.core.jobs["a"].state is JobState.FINISHED
    assert list(bench.core.pools["p"].own) == [("b", 1)]


def test_hosts_without_a_link_and_pools_are_forgotten() -> None:
    """Names of hosts that come and go do not pile up; one that still has pools may come back."""
    bench = Bench(wide())
    for n in range(9):
        bench.register(host=f"passing{n}")
        bench.step(HostLost(f"passing{n}", n + 2))
    bench.step(HostLost("h", 1))
    assert list(bench.state.hosts) == ["h"]

    bench.register(wide(replica_id="p#2", host_id="g"), host="g")

    assert list(bench.state.hosts) == ["g"]


def test_pools_of_hosts_that_never_return_are_forgotten() -> None:
    """They make room for others; a host that was back in between keeps its pools."""
    bench = Bench(wide("p"), wide("q"), pools_max=3, host_retention_ms=1_000)
    bench.register(wide("r", host_id="g"), host="g")
    bench.step(HostLost("h", 1))
    bench.step(HostLost("g", 2))
    bench.step(HostRegistered("g", 3, (wide("r", version=2, host_id="g"),)), 500)
    bench.step(HostLost("g", 3))

    bench.at(999)
    assert list(bench.core.pools) == ["p", "q", "r"]
    assert bench.core.pool_refusal("new", "n") is not None
    bench.at(1_000)
    assert list(bench.core.pools) == ["r"]
    assert list(bench.state.hosts) == ["g"]
    assert bench.core.pool_refusal("new", "n") is None
    bench.at(1_500)
    assert not bench.core.pools
    assert not bench.state.hosts
    assert bench.core.next_deadline_ms() is None


def test_a_drain_outlives_the_retention_of_its_host() -> None:
    """OC-CTRL-2002: a machine that was off for days still gets no job before its operator says so.

    As after a restart, which knows nothing of when the host was lost.
    """
    bench = Bench(wide(), host_retention_ms=1_000)
    bench.step(PoolDrainRequested("p", draining=True, timeout_ms=10, reply_to=1))
    bench.step(HostLost("h", 1))
    bench.at(1_000)
    forgotten = not bench.core.pools

    back = bench.register(wide(version=2))
    bench.enqueue("a")
    held_back = bench.core.jobs["a"].state
    bench.step(PoolDrainRequested("p", draining=False, timeout_ms=0, reply_to=2))

    assert forgotten
    assert [drain.left_ms for drain in only(back, SendDrain)] == [0]
    assert held_back is JobState.QUEUED
    assert bench.core.jobs["a"].state is JobState.DISPATCHED


def test_a_job_waits_for_a_lost_host_and_outlives_its_pools() -> None:
    """It keeps its place when the pools are forgotten, and runs when they are back after all."""
    bench = Bench(wide(), host_retention_ms=1_000)
    bench.step(HostLost("h", 1))
    bench.enqueue("a")

    bench.at(1_000)
    assert not bench.core.pools
    assert bench.core.jobs["a"].state is JobState.QUEUED
    effects = bench.register(wide(version=2))

    assert [d.job_id for d in only(effects, DispatchRecord)] == ["a"]


def test_what_still_runs_of_an_ended_job_is_stopped_and_kept() -> None:
    """LO-305: its output may be asked for; its slot is taken until the host confirms the end."""
    bench = Bench(wide(slots=1), reattach_grace_ms=100)
    bench.enqueue("a")
    bench.step(HostLost("h", 1))
    bench.step(CancelRequested("a", 0))
    bench.at(100)
    assert not bench.core.live_attempts, "given up"

    effects = bench.register(wide(slots=1, version=2), held=[held("a")])

    (answer,) = only(effects, SendVerdicts)
    assert answer.verdicts == (("a", 1, Verdict.ADOPT),)
    assert [effect.job_id for effect in only(effects, SendCancel)] == ["a"]
    assert bench.core.pools["p"].slots_free() == 0
    bench.end("a")
    assert bench.core.pools["p"].slots_free() == 1
    assert bench.core.jobs["a"].state is JobState.CANCELLED


def test_an_attempt_is_bound_to_its_incarnation() -> None:
    """LO-304: what another incarnation holds under the same number is not this attempt."""
    bench = Bench(wide())
    bench.enqueue("a")

    effects = bench.register(wide(replica_id="p#2"), held=[held("a", boot=2)])

    (answer,) = only(effects, SendVerdicts)
    assert answer.verdicts == (("a", 1, Verdict.ABORT),)
    assert [d.attempt for d in only(effects, DispatchRecord)] == [2]


def test_output_of_ended_jobs_stays_where_it_is_held() -> None:
    """It may be asked for until retention ends; what nobody knows is released or aborted."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.end("a")

    effects = bench.register(
        wide(), held=[held("a", ended=True), held("x", ended=True), held("y"), held("a")]
    )

    (answer,) = only(effects, SendVerdicts)
    assert [verdict for _, _, verdict in answer.verdicts] == [
        Verdict.ADOPT,
        Verdict.RELEASE,
        Verdict.ABORT,
        Verdict.ABORT,
    ]


def test_pools_are_bounded() -> None:
    """A pool beyond the bound is not registered, and its host is told."""
    bench = Bench(pools_max=1)

    (answer,) = only(bench.register(wide("p"), wide("q")), SendVerdicts)

    assert list(bench.core.pools) == ["p"]
    ((pool_id, why),) = answer.refused
    assert (pool_id, why[:19]) == ("q", "there are 1 pools, ")


def test_a_changed_pool_is_judged_anew() -> None:
    """What is feasible follows the snapshot at once."""
    bench = Bench(wide())
    bench.enqueue("a")
    assert len(bench.state.feasible(bench.core.jobs["a"].spec.needs).pools) == 1

    bench.report(replace(wide(version=2), model_id="n"))

    assert not bench.state.feasible(bench.core.jobs["a"].spec.needs).pools


def test_a_cancelled_attempt_is_cancelled_again_when_its_host_returns() -> None:
    """The first cancel may have been lost with the link."""
    bench = Bench(snapshot())
    bench.enqueue("a")
    bench.step(HostLost("h", 1))

    bench.step(CancelRequested("a", 0))

    effects = bench.register(snapshot(version=2), held=[held("a")])

    assert [effect.job_id for effect in only(effects, SendCancel)] == ["a"]
    assert bench.core.pools["p"].slots_free() == 0


def test_a_job_whose_host_never_has_it_is_not_sent_for_ever() -> None:
    """An attempt that never ran is no try; beyond a thousand of them the next ones are."""
    bench = Bench(wide(), attempts_max=3)
    bench.enqueue("a")
    job = bench.core.jobs["a"]

    times = 0
    while job.live and times < 2 * REFUSALS_MAX:
        times += 1
        bench.register(wide())

    assert job.state is JobState.FAILED
    assert (times, job.failures) == (REFUSALS_MAX + 3, 3)
