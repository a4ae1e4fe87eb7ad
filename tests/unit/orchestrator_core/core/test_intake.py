"""Enqueue, cancel, and what a failed commit takes back."""

import pytest

from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.effects import (
    DispatchRecord,
    JobEnded,
    JobForgotten,
    ReplyAccepted,
    ReplyRefused,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptErrorKind,
    AttemptRefused,
    HostLost,
)
from orchestrator_core.core.job import Needs
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot


def test_what_no_pool_can_serve_is_refused_with_every_shortfall() -> None:
    """LO-201: the refusal lists each pool and what it lacks, and a retry does not help."""
    bench = Bench(snapshot("p"), snapshot("q", model_id="n"))

    effects = bench.enqueue("a", needs=Needs("m", required_ctx=9_999, engine="vllm"))

    (reply,) = only(effects, ReplyRefused)
    assert reply.refusal.reason is Reason.INCOMPATIBLE_MODEL
    assert reply.refusal.retry_after_ms is None
    assert {e.pool_id: [s.reason for s in e.shortfalls] for e in reply.refusal.shortfalls} == {
        "p": [ExclusionReason.ENGINE, ExclusionReason.CONTEXT],
        "q": [ExclusionReason.MODEL, ExclusionReason.ENGINE, ExclusionReason.CONTEXT],
    }


def test_kinds_of_waiting_jobs_are_bounded() -> None:
    """A new lane beyond the bound is refused; a job of a known lane is not."""
    bench = Bench(wide(slots=1), lanes_max=2)
    bench.enqueue("running")
    bench.enqueue("a", needs=Needs("m", required_ctx=1))
    bench.enqueue("b", needs=Needs("m", required_ctx=2))

    (refused,) = only(bench.enqueue("c", needs=Needs("m", required_ctx=3)), ReplyRefused)
    accepted = only(bench.enqueue("d", needs=Needs("m", required_ctx=2)), ReplyAccepted)

    assert refused.refusal.policy_label == "lanes"
    assert accepted


def test_answers_are_remembered_for_their_time_and_within_the_bound() -> None:
    """ORCH-3024: the oldest answer goes first, and each goes after its time."""
    bench = Bench(wide(), idempotency_max=2, idempotency_ttl_ms=100, retention_ms=1)
    for job_id in ("a", "b", "c"):
        bench.enqueue(job_id, request_id=f"request of {job_id}")
        bench.end(job_id)
    assert [known.job_id for known in bench.state.remembered.values()] == ["b", "c"]

    bench.at(99)
    (again,) = only(bench.enqueue("c", request_id="request of c"), ReplyAccepted)
    bench.at(100)
    (anew,) = only(bench.enqueue("c", request_id="request of c"), ReplyAccepted)

    assert again.receipt.duplicate
    assert not anew.receipt.duplicate


def test_requests_of_different_clients_do_not_meet() -> None:
    """The same request id under another identity is another request."""
    bench = Bench(wide())
    bench.enqueue("a", request_id="r", identity="alice")

    (reply,) = only(bench.enqueue("b", request_id="r", identity="bob"), ReplyAccepted)

    assert reply.receipt.job_id == "b"
    assert not reply.receipt.duplicate


def test_taking_a_job_back_leaves_a_pool_of_the_same_name_alone() -> None:
    """A client that names its job like a pool does not stop that pool's clock."""
    bench = Bench(snapshot("p"), refusal_backoff_ms=100)
    bench.enqueue("first")
    bench.step(AttemptRefused("first", 1, "no slot"))

    bench.enqueue("p")
    bench.step(AcceptsFailed(("p",)))

    assert only(bench.at(100), DispatchRecord), "the pool opens again"


def test_a_victim_comes_back_as_it_was() -> None:
    """Design 6: with its old place, its queue timeout and its wait for an audience."""
    bench = Bench(
        wide(slots=1),
        queue_capacity=1,
        queue_policy=QueuePolicy.DROP_LRU,
        queue_timeout_ms=500,
        disconnect_grace_ms=200,
    )
    bench.enqueue("running")
    bench.enqueue("victim", cancel_on_disconnect=True)
    bench.at(100)
    bench.enqueue("newcomer")

    bench.step(AcceptsFailed(("newcomer",)))

    assert bench.core.jobs["victim"].state is JobState.QUEUED
    assert bench.core.jobs["victim"].usage.queue_time_ms is None
    assert bench.state.timers._due[(TimerKind.QUEUE_TIMEOUT, "victim")] == 500
    assert only(bench.at(300), JobEnded)[0].why == "disconnect"


def test_a_victim_comes_back_even_when_it_was_forgotten() -> None:
    """A short memory of ended jobs does not make an accepted job vanish."""
    bench = Bench(
        wide(slots=1), queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU, finished_jobs_max=1
    )
    bench.enqueue("running", "victim", "newcomer")
    forgotten = only(bench.end("running"), JobForgotten)
    assert [effect.job_id for effect in forgotten] == ["victim"]

    bench.step(AcceptsFailed(("newcomer",)))

    assert bench.core.jobs["victim"].attempt is not None


def test_fail_fast_wants_memory_too() -> None:
    """A free slot without room for the keys and values is no slot for this job."""
    bench = Bench(wide(kv_free_bytes=4), queue_policy=QueuePolicy.FAIL_FAST)

    (reply,) = only(bench.enqueue("a", est_kv_bytes=5), ReplyRefused)

    assert reply.refusal.policy_label == "fail-fast"


def test_the_wait_that_is_advised_follows_the_drain_rate() -> None:
    """ORCH-2007: the mean time between departures, times the rejected before, within its bounds."""
    bench = Bench(wide(slots=1), queue_capacity=1, retry_after_min_ms=10, retry_after_max_ms=1_000)
    bench.enqueue("a", "b")
    bench.at(600)
    bench.end("a")
    bench.enqueue("c")
    bench.at(900)
    bench.end("b")
    bench.enqueue("d")

    replies = only(bench.enqueue("e", "f", "g", "h"), ReplyRefused)

    assert [reply.refusal.retry_after_ms for reply in replies] == [300, 600, 900, 1_000]


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_host_still_counts_as_registered(lost: bool) -> None:
    """Design 5.2: a job queues if any registered pool, connected or not, could serve it."""
    bench = Bench(wide())
    if lost:
        bench.step(HostLost("h", 1))

    effects = bench.enqueue("a")

    assert only(effects, ReplyAccepted)
    assert bool(only(effects, DispatchRecord)) is not lost


def test_a_retry_is_exempt_from_capacity() -> None:
    """LO-101: it comes back into a full queue, at its old place."""
    bench = Bench(wide("p", slots=1), wide("q", slots=1, model_id="n"), queue_capacity=2)
    bench.enqueue("a", "b", "c")

    bench.fail("a", AttemptErrorKind.ENGINE_DIED)

    assert bench.core.queue_depth() == 3
    order = bench.core.queue_order(bench.core.jobs["a"].spec.priority)
    assert order == ("a", "b", "c")
    assert only(bench.enqueue("d"), ReplyRefused)


def test_keys_and_values_that_no_pool_could_hold_are_refused_at_once() -> None:
    """LO-201: a job larger than every pool's memory is not left to wait for its timeout."""
    bench = Bench(wide("p", vram_total_bytes=100), wide("q", vram_total_bytes=200))

    fits = bench.enqueue("a", est_kv_bytes=150)
    (reply,) = only(bench.enqueue("b", est_kv_bytes=201), ReplyRefused)

    assert only(fits, ReplyRefused) == []
    assert reply.refusal.reason is Reason.INCOMPATIBLE_DEVICE_MASK
    assert [exclusion.pool_id for exclusion in reply.refusal.shortfalls] == ["p", "q"]
