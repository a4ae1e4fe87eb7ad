"""Throttles, context and budgets: the gates in front of the queue, what they take and give back."""

from typing import Any

from orchestrator_core.core.config import Guardrails, Limits, QueuePolicy, ThrottleConfig
from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.effects import JobEnded, ReplyAccepted, SendStart
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
)
from orchestrator_core.core.outcome import Finish, Reason, Usage
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Budgets, Needs
from tests.unit.orchestrator_core.core.bench import Bench, let_in, only, refusal, wide
from tests.unit.orchestrator_core.core.build import snapshot

DRY = {"max_tokens": 100, "prompt_bytes": 0}


def limited(requests: int = 0, tokens: int = 0, queued: int = 0, **config: Any) -> Bench:
    """One pool with one slot, and limits for everybody."""
    throttle = ThrottleConfig(Limits(requests, tokens, queued))
    return Bench(wide(slots=1), throttle=throttle, **config)


def room(bench: Bench, identity: str = "") -> int:
    """Tokens that the client could take now, found by trying."""
    most = bench.core.config.throttle.limits(identity).tokens_per_min
    tried = range(1, most + 1)
    refused = (n for n in tried if bench.state.throttle.check(identity, n, bench.now_ms))
    return next(refused, most + 1) - 1


# --- throttles


def test_requests_are_limited_per_client_and_told_the_exact_wait() -> None:
    """ORCH-3006: the wait is when the bucket has room again, and that holds to the millisecond."""
    bench = limited(requests=2)
    assert all(let_in(bench.enqueue(name, identity="alice")) for name in "ab")

    refused = refusal(bench.enqueue("c", identity="alice"))

    assert (refused.reason, refused.policy_label) == (Reason.ADMISSION_REJECT, "throttle-requests")
    assert refused.retry_after_ms == 30_000
    assert refused.metadata == {"limit": "2"}
    assert let_in(bench.enqueue("d", identity="bob"))
    bench.at(29_999)
    assert refusal(bench.enqueue("c", identity="alice")).retry_after_ms == 100, "the lower bound"
    bench.at(30_000)
    assert let_in(bench.enqueue("c", identity="alice"))


def test_a_repeated_request_costs_nothing() -> None:
    """ORCH-3024: the first answer again, even when the client's bucket is empty."""
    bench = limited(requests=1)
    bench.enqueue("a", request_id="r")

    (again,) = only(bench.enqueue("a", request_id="r"), ReplyAccepted)

    assert again.receipt.duplicate
    bench.at(60_000)
    assert let_in(bench.enqueue("b"))


def test_a_refused_request_costs_nothing() -> None:
    """Only what is accepted is charged, so that coming back as told is never punished."""
    bench = limited(requests=2, queue_capacity=1)
    bench.enqueue("running", "waiting")
    bench.at(60_000)
    for _ in range(5):
        assert refusal(bench.enqueue("late")).policy_label == "reject"

    bench.step(CancelRequested("waiting", 0))

    assert let_in(bench.enqueue("late"))


def test_tokens_are_charged_at_admission_and_settled_at_the_end() -> None:
    """The reserved 100 become the 30 that it took."""
    bench = limited(tokens=100)
    bench.enqueue("a", **DRY)
    assert room(bench) == 0

    bench.end("a", usage=Usage(tokens_in=10, tokens_out=20))

    assert room(bench) == 70


def test_a_job_that_takes_more_than_expected_is_charged_for_it() -> None:
    """A low hint of the output only borrows."""
    bench = limited(tokens=100)
    bench.enqueue("a", expected_tokens=10)

    bench.end("a", usage=Usage(tokens_in=50, tokens_out=70))

    refused = refusal(bench.enqueue("b", expected_tokens=10))
    assert refused.policy_label == "throttle-tokens"
    assert refused.retry_after_ms == 600 * 30, "20 of debt and 10 to take, 100 a minute"


def test_what_never_ran_is_given_back() -> None:
    """Cancelled while it waited."""
    bench = limited(tokens=200)
    bench.enqueue("running", "waiting", **DRY)

    bench.step(CancelRequested("waiting", 0))

    assert room(bench) == 100


def test_a_stopped_job_is_settled_when_its_pool_tells_what_it_took() -> None:
    """Until then the reserved tokens stay charged."""
    bench = limited(tokens=100)
    bench.enqueue("a", **DRY)
    bench.step(AttemptStarted("a", 1))
    bench.step(CancelRequested("a", 0))
    assert room(bench) == 0

    usage = Usage(tokens_in=5, tokens_out=15)
    bench.step(AttemptEnded("a", 1, 1, finish=Finish.CANCELLED, usage=usage))

    assert room(bench) == 80


def test_a_job_that_failed_is_free() -> None:
    """The client got no use of it."""
    bench = limited(tokens=100)
    bench.enqueue("a", **DRY)

    bench.fail("a", AttemptErrorKind.CONTEXT_OVERFLOW)

    assert room(bench) == 100


def test_a_failed_commit_gives_everything_back() -> None:
    """The request, the tokens and the place in the queue."""
    bench = limited(requests=2, tokens=200, queued=1)
    bench.enqueue("running", "waiting", **DRY)

    bench.step(AcceptsFailed(("running", "waiting")))

    assert room(bench) == 200
    assert bench.state.throttle.waiting("") == 0
    assert let_in(bench.enqueue("again", **DRY))


def test_a_dropped_job_that_comes_back_is_charged_again() -> None:
    """Design 6: as if it had never been dropped."""
    bench = limited(tokens=1_000, queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU)
    bench.enqueue("running", "victim", **DRY)
    assert room(bench) == 800
    bench.enqueue("newcomer", max_tokens=50)
    assert room(bench) == 850

    bench.step(AcceptsFailed(("newcomer",)))

    assert room(bench) == 800


def test_waiting_jobs_are_limited_and_the_wait_comes_from_the_drain() -> None:
    """One in two that wait is this client's, so two places have to become free."""
    throttle = ThrottleConfig(identities={"me": Limits(queued_jobs=1)})
    bench = Bench(wide(slots=1), throttle=throttle)
    bench.enqueue("a", "b", "c", "d", "e", "f", identity="others")
    for n, job_id in enumerate("abcd", start=1):
        bench.at(500 * n)
        bench.end(job_id)
    bench.enqueue("g", identity="me")

    refused = refusal(bench.enqueue("h", identity="me"))

    assert refused.policy_label == "throttle-queued"
    assert len(bench.state.queue) == 2
    assert refused.retry_after_ms == 1_000


def test_the_count_of_waiting_jobs_follows_the_queue() -> None:
    """Through placing, ending, retrying and cancelling."""
    bench = limited()
    bench.enqueue("a", "b", "c", identity="alice")
    assert bench.state.throttle.waiting("alice") == 2
    bench.step(CancelRequested("c", 0))
    assert bench.state.throttle.waiting("alice") == 1
    bench.fail("a", AttemptErrorKind.ENGINE_DIED)
    assert bench.state.throttle.waiting("alice") == 2
    bench.report(wide(slots=1, replica_id="p#2", version=2))
    assert bench.state.throttle.waiting("alice") == 1


# --- context


def test_a_prompt_that_fits_no_context_is_refused_with_each_pools_size() -> None:
    """ORCH-3014: only what certainly exceeds: a byte less is let in."""
    sizes = (snapshot("p", ctx_max=100), snapshot("q", ctx_max=200))
    bench = Bench(*sizes, guardrails=Guardrails(token_bytes_max=10))

    refused = refusal(bench.enqueue("a", prompt_bytes=1_991))

    assert refused.reason is Reason.INCOMPATIBLE_MODEL
    assert refused.retry_after_ms is None
    assert refused.metadata == {"field": "spec.input"}
    assert {e.pool_id: e.shortfalls[0].offered for e in refused.shortfalls} == {
        "p": "100",
        "q": "200",
    }
    assert {e.shortfalls[0].reason for e in refused.shortfalls} == {ExclusionReason.CONTEXT}
    assert let_in(bench.enqueue("b", prompt_bytes=1_990))


def test_more_output_than_a_context_holds_names_what_would_fit() -> None:
    """The client is told the largest max_tokens."""
    bench = Bench(snapshot("p", ctx_max=100), guardrails=Guardrails(token_bytes_max=10))

    refused = refusal(bench.enqueue("a", prompt_bytes=100, max_tokens=91))

    assert refused.metadata == {"field": "spec.sampling.max_tokens"}
    assert "at most 90" in refused.message


def test_a_context_that_is_not_known_yet_refuses_nobody() -> None:
    """An engine that starts says 0; the guardrail holds as soon as it says more."""
    starting = snapshot("p", ctx_max=0, state=PoolState.STARTING)
    bench = Bench(starting, guardrails=Guardrails(token_bytes_max=10))

    assert let_in(bench.enqueue("a", prompt_bytes=5_000, budgets=Budgets(tokens=900)))
    assert bench.core.jobs["a"].spec.needs == Needs("m")
    bench.report(snapshot("p", ctx_max=100, version=2))

    assert refusal(bench.enqueue("b", prompt_bytes=5_000)).metadata == {"field": "spec.input"}


def test_a_long_job_goes_where_it_fits() -> None:
    """The small pool is free and faster, and would only answer with an overflow."""
    small = snapshot("p", ctx_max=100, perf_tokens_per_s=900.0)
    bench = Bench(small, snapshot("q", ctx_max=200), guardrails=Guardrails(token_bytes_max=10))

    (start,) = only(bench.enqueue("a", prompt_bytes=1_500), SendStart)

    assert start.pool_id == "q"


def test_a_job_that_is_too_long_here_and_too_large_there_is_refused() -> None:
    """LO-201: no pool can ever serve it, so it must not wait for its queue timeout."""
    bench = Bench(
        snapshot("roomy", ctx_max=4_096, vram_total_bytes=100, vram_free_bytes=100),
        snapshot("long", ctx_max=32_768, vram_total_bytes=10, vram_free_bytes=10),
    )

    refused = refusal(bench.enqueue("a", prompt_bytes=256 * 10_000, est_kv_bytes=50))

    lacking = {e.pool_id: e.shortfalls[0].reason for e in refused.shortfalls}
    assert lacking == {"roomy": ExclusionReason.CONTEXT, "long": ExclusionReason.KV_TOTAL}


def test_long_jobs_of_all_lengths_share_a_lane() -> None:
    """Otherwise each length would be another kind of waiting job, and those are bounded."""
    pools = snapshot("p", ctx_max=100), snapshot("q", ctx_max=200)
    bench = Bench(*pools, guardrails=Guardrails(token_bytes_max=10))

    for n in range(40):
        bench.enqueue(f"j{n}", prompt_bytes=1_200 + 10 * n)

    assert len(bench.state.queue) == 39
    assert len(bench.state.queue.lanes) == 1


# --- budgets


def test_a_budget_lowers_what_the_pool_may_generate() -> None:
    """The estimated prompt (4 bytes a token at first) is taken off."""
    bench = Bench(snapshot())

    (start,) = only(
        bench.enqueue("a", prompt_bytes=400, max_tokens=900, budgets=Budgets(tokens=950)), SendStart
    )

    assert start.spec.max_tokens == 850


def test_a_capped_job_goes_where_its_output_has_room() -> None:
    """The cap is an explicit max_tokens to the engine, and the small pool would refuse it."""
    small = snapshot("p", ctx_max=100, perf_tokens_per_s=900.0)
    bench = Bench(small, snapshot("q", ctx_max=400))

    (start,) = only(bench.enqueue("a", prompt_bytes=40, budgets=Budgets(tokens=300)), SendStart)

    assert (start.pool_id, start.spec.max_tokens) == ("q", 290)


def test_a_time_budget_stops_the_job_like_a_watchdog() -> None:
    """The attempt is stopped and the message names the budget."""
    bench = Bench(snapshot(), idle_timeout_ms=10_000, stale_after_ms=60_000)
    bench.enqueue("a", budgets=Budgets(time_ms=700))
    bench.step(AttemptStarted("a", 1))

    assert not only(bench.at(699), JobEnded)
    (ended,) = only(bench.at(700), JobEnded)

    assert ended.outcome.error is not None
    assert ended.outcome.error.reason is Reason.DECODE_TIMEOUT
    assert "budget of 700 ms" in ended.outcome.error.message


def test_a_time_budget_never_lengthens_the_watchdog() -> None:
    """The server's own bound holds, and is named."""
    bench = Bench(snapshot(), wall_timeout_ms=500, stale_after_ms=60_000)
    bench.enqueue("a", budgets=Budgets(time_ms=700))

    (ended,) = only(bench.at(500), JobEnded)

    assert ended.outcome.error is not None
    assert "watchdog for wall time" in ended.outcome.error.message


def test_gates_do_not_change_what_the_job_needs_when_it_fits() -> None:
    """Short jobs keep the lane of their plain needs."""
    bench = Bench(snapshot())
    bench.enqueue("a")

    assert bench.core.jobs["a"].spec.needs == Needs("m")
