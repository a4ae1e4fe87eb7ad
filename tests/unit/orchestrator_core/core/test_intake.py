"""Enqueue, cancel, and what a failed commit takes back."""

from itertools import permutations

import pytest

from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.effects import (
    ConfirmEnd,
    Effect,
    JobEnded,
    JobForgotten,
    ReplyAccepted,
    ReplyRefused,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptErrorKind,
    AttemptRefused,
    CancelRequested,
    DrainRequested,
    EndConfirmed,
    EnqueueRequested,
    HeldAttempt,
    HostLost,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.spec import Needs, Priority
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide
from tests.unit.orchestrator_core.core.build import snapshot, spec


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


def test_a_mistyped_model_is_told_with_those_that_there_are() -> None:
    """On a fleet of any size the answer is one short sentence."""
    few = Bench(snapshot("p", model_id="tiny"), snapshot("q", model_id="base"))
    many = Bench(*(snapshot(f"p{n:02d}", model_id=f"model-{n:02d}") for n in range(60)))

    assert refusal(few.enqueue("a", needs=Needs("tinny"))).message == (
        "no registered pool has model 'tinny': there are base, tiny"
    )
    assert refusal(many.enqueue("a", needs=Needs("tinny"))).message.endswith(
        "model-06, model-07 and 52 more"
    )


def test_pools_that_lack_the_same_are_told_together() -> None:
    """Those of the model alone: what others lack does not help."""
    shorts = (snapshot(f"short-{n:02d}", ctx_max=64) for n in range(60))
    others = (snapshot(f"other-{n:02d}", model_id="n") for n in range(60))
    bench = Bench(*shorts, *others, snapshot("longer", ctx_max=128))

    assert refusal(bench.enqueue("a", needs=Needs("m", required_ctx=256))).message == (
        "none of the 121 registered pools can ever serve the job (longer: context needs 256, "
        "offers 128; short-00 and 59 more: context needs 256, offers 64)"
    )


def test_memory_is_told_in_gib_unless_that_hides_the_difference() -> None:
    """Both sides of a shortfall are read by people."""
    bench = Bench(snapshot("p", vram_total_bytes=8 << 30))

    much = bench.enqueue("a", needs=Needs("m", min_vram_bytes=24 << 30))
    little = bench.enqueue("b", needs=Needs("m", min_vram_bytes=(8 << 30) + 1))

    assert "vram_total needs 24.00 GiB, offers 8.00 GiB" in refusal(much).message
    assert "vram_total needs 8589934593, offers 8589934592" in refusal(little).message


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


def test_a_request_that_comes_too_late_may_only_repeat_one() -> None:
    """Then it is answered as that was, also by a server that shuts down. ORCH-3024."""
    bench = Bench(wide())
    bench.enqueue("a", request_id="r")
    bench.step(DrainRequested())
    stale = Refusal(Reason.INVALID_PARAMS, "its input is gone")

    def answers(job_id: str, **fields: str) -> list[Effect]:
        return bench.step(EnqueueRequested(spec(job_id, **fields), 0, stale))

    (by_request,) = only(answers("b", request_id="r", digest="digest of a"), ReplyAccepted)
    (by_id,) = only(answers("a"), ReplyAccepted)
    (other_body,) = only(answers("b", request_id="r"), ReplyRefused)
    (new,) = only(answers("b"), ReplyRefused)

    assert (by_request.receipt.job_id, by_request.receipt.duplicate) == ("a", True)
    assert (by_id.receipt.job_id, by_id.receipt.duplicate) == ("a", True)
    assert other_body.refusal.reason is Reason.DUPLICATE
    assert new.refusal is stale


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


def test_a_displaced_job_keeps_its_prompt_only_until_its_end_is_durable() -> None:
    """It may come back until then; a flood of large prompts does not pile up after. LO-302."""
    bench = Bench(wide(slots=1), queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU)
    bench.enqueue("running", payload=b"prompt")
    bench.enqueue("victim", payload=b"prompt")
    displacing = bench.core.step(EnqueueRequested(spec("newcomer", payload=b"prompt"), 1), 1)
    undecided = bench.core.jobs["victim"].spec.payload

    assert only(displacing, ConfirmEnd) == [ConfirmEnd("victim")]
    assert undecided == b"prompt"
    bench.core.step(EndConfirmed("victim"), 2)
    assert bench.core.jobs["victim"].spec == spec("victim")
    assert not bench.state.displaced


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


def test_a_victim_whose_id_was_used_again_does_not_come_back() -> None:
    """Two jobs of one id would be in the queue: the newer one stands."""
    bench = Bench(
        snapshot(slots_free=0),
        queue_capacity=1,
        queue_policy=QueuePolicy.DROP_LRU,
        finished_jobs_max=1,
    )
    bench.enqueue("a", "b", "c")
    assert "a" not in bench.core.jobs, "forgotten beyond the bound"
    bench.enqueue("a", digest="another")

    bench.step(AcceptsFailed(("b", "c")))

    # A shell that takes it back in the same event has the victim again.
    assert bench.core.jobs["a"].spec.digest == "another"
    assert bench.core.queue_order(Priority.INTERACTIVE) == ("a",)


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


def test_a_refusal_does_not_depend_on_the_order_of_pools() -> None:
    """LO-201: the same list of shortfalls, of feasible and infeasible pools, however they came."""
    pools = (
        wide("a", vram_total_bytes=10),
        wide("b", model_id="n", vram_total_bytes=99),
        wide("c", vram_total_bytes=20, kv_bytes_per_token=9),
    )
    refusals = []
    for order in permutations(pools):
        bench = Bench(*order)
        effects = bench.enqueue("j", est_kv_bytes=50, needs=Needs("m", engine="llama.cpp"))
        refusals += [reply.refusal for reply in only(effects, ReplyRefused)]

    assert len(refusals) == 6
    assert all(refusal == refusals[0] for refusal in refusals)
    assert {e.pool_id: [s.reason for s in e.shortfalls] for e in refusals[0].shortfalls} == {
        "a": [ExclusionReason.KV_TOTAL],
        "b": [ExclusionReason.MODEL],
        "c": [ExclusionReason.KV_TOTAL],
    }


def test_a_required_context_reserves_its_bytes_on_the_pool_that_takes_it() -> None:
    """LO-201, LO-205: two jobs of 6 of 10 bytes never share a pool; slots of their own hold any."""
    needs = Needs("m", required_ctx=3)
    on_demand = Bench(wide("p", vram_free_bytes=10, kv_bytes_per_token=2))
    taken = Bench(
        wide(
            "p",
            slots=2,
            vram_free_bytes=0,
            kv_free_bytes=12,
            kv_bytes_per_token=2,
            kv_slot_bytes=6,
            kv_preallocated=True,
        )
    )

    placed = [
        len(only(b.enqueue("a", "b", needs=needs), DispatchRecord)) for b in (on_demand, taken)
    ]

    assert placed == [1, 2]
    assert on_demand.state.jobs["b"].state is JobState.QUEUED


def test_an_attempt_taken_up_after_a_restart_has_its_bytes_again() -> None:
    """LO-204: what the journal does not hold follows from the pool's first snapshot."""
    needs = Needs("m", required_ctx=3)
    pool = wide("p", vram_free_bytes=10, kv_bytes_per_token=2)
    bench = Bench(pool)
    bench.enqueue("a", needs=needs)
    attempt = bench.state.jobs["a"].attempt
    assert attempt is not None
    attempt.est_kv_bytes = 0

    bench.register(pool, held=[HeldAttempt("a", 1, "p", "p#1", ended=False)])

    assert attempt.est_kv_bytes == 6
    assert only(bench.enqueue("b", needs=needs), DispatchRecord) == []


@pytest.mark.parametrize(("took_ms", "advised_ms"), [(2, 500), (800, 800), (9_000, 1_000)])
def test_the_advised_wait_stays_within_its_bounds(took_ms: int, advised_ms: int) -> None:
    """ORCH-2007: neither at once nor never, however fast or slow jobs leave."""
    bounds = {"retry_after_min_ms": 500, "retry_after_max_ms": 1_000}
    bench = Bench(wide(slots=1), queue_capacity=1, **bounds)
    bench.enqueue("a", "b")
    for number, (running, following) in enumerate(("ac", "bd"), 1):
        bench.at(number * took_ms)
        bench.end(running)
        bench.enqueue(following)

    (reply,) = only(bench.enqueue("e"), ReplyRefused)

    assert reply.refusal.retry_after_ms == advised_ms


def test_a_cancelled_job_leaves_its_place_at_once() -> None:
    """ORCH-3026, LO-101: the next one is let in, and is told that nobody is ahead."""
    bench = Bench(wide(slots=1), queue_capacity=1)
    bench.enqueue("running", "waits")

    bench.step(CancelRequested("waits", 0))
    (reply,) = only(bench.enqueue("next"), ReplyAccepted)

    assert reply.receipt.position == 1
    assert len(bench.state.queue) == 1


def test_a_victim_comes_back_in_the_place_of_the_job_that_took_its_id() -> None:
    """Both accepts are taken back in one event, the newer one first."""
    bench = Bench(
        snapshot(slots_free=0),
        queue_capacity=1,
        queue_policy=QueuePolicy.DROP_LRU,
        retention_ms=100,
    )
    bench.enqueue("a", "b")
    bench.at(100)
    assert "a" not in bench.core.jobs, "forgotten after its retention"
    bench.enqueue("a", digest="another")

    bench.step(AcceptsFailed(("b", "a")))

    assert bench.core.jobs["a"].spec.digest == "digest of a"
    assert bench.core.queue_order(Priority.INTERACTIVE) == ("a",)
