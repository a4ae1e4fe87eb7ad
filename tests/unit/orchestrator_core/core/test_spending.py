"""What sessions may spend, what they are refused, and what is kept of them."""

from typing import Any

import pytest

from orchestrator_core.core.config import Guardrails, Price, SessionBudgets
from orchestrator_core.core.effects import (
    Effect,
    JobStarted,
    ReplyAccepted,
    ReplySession,
    SendStart,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    OutputProgressed,
    Recovered,
    SessionDeleted,
)
from orchestrator_core.core.outcome import Finish, Reason, Usage
from orchestrator_core.core.records import SessionForgotten, SessionRecord
from orchestrator_core.core.session import Session, Spent
from orchestrator_core.core.spec import Budgets, Failover
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide

# With this many bytes a prompt has ten tokens, by estimate and for certain.
RAILS = Guardrails(token_bytes_max=4, price=Price(1_000, 2_000))
TEN = {"prompt_bytes": 40, "session_id": "s"}


def bench(**config: Any) -> Bench:
    """One pool with room for eight and a context of 1,000 tokens."""
    return Bench(wide(ctx_max=1_000), guardrails=RAILS, **config)


def left(effects: list[Effect]) -> Budgets | None:
    """What the receipt says is left."""
    (reply,) = only(effects, ReplyAccepted)
    return reply.receipt.remaining


def session(bench: Bench, name: str = "s") -> Session:
    """A session that lives."""
    found = bench.core.session("", name)
    assert found is not None
    return found


def run(bench: Bench, job_id: str, tokens_in: int = 10, tokens_out: int = 5, **spec: Any) -> None:
    """A job of the session starts and ends well."""
    bench.enqueue(job_id, **TEN | spec)
    bench.step(AttemptStarted(job_id, 1))
    bench.end(job_id, usage=Usage(tokens_in, tokens_out))


# --- turns and time


def test_the_turn_after_the_last_is_refused_with_what_helps() -> None:
    """ORCH-3021: eight by default; no wait helps, another session does."""
    world = bench()
    for turn in range(8):
        run(world, f"j{turn}")

    refused = refusal(world.enqueue("j8", **TEN))

    assert (refused.reason, refused.policy_label) == (Reason.ADMISSION_REJECT, "session-turns")
    assert refused.retry_after_ms is None
    assert "another session_id" in refused.message
    assert only(world.enqueue("j8", session_id="another"), ReplyAccepted)


def test_a_job_that_never_ran_was_no_turn() -> None:
    """Only what reached a pool counts."""
    world = Bench(wide(slots=1), session_turns_max=2)
    world.enqueue("running", session_id="s")
    world.enqueue("waiting", session_id="s")

    world.step(CancelRequested("waiting", 0))

    assert session(world).turns == 1
    assert only(world.enqueue("again", session_id="s"), ReplyAccepted)


def test_a_session_ends_when_it_was_silent_for_its_time() -> None:
    """ORCH-3021: ten minutes by default, from the last end; then it begins anew."""
    world = bench()
    world.enqueue("a", **TEN)
    world.now_ms = 3_000_000
    world.end("a")
    world.at(3_599_999)
    assert session(world).turns == 1

    effects = world.at(3_600_000)

    assert only(effects, SessionForgotten) == [SessionForgotten("", "s")]
    assert world.core.session("", "s") is None
    assert not len(world.core.sessions)
    run(world, "b")
    assert session(world).turns == 1


def test_at_the_bound_the_session_idle_for_longest_is_forgotten() -> None:
    """ORCH-3022: one with a live job is not; when all are alive, the newcomer has to wait."""
    world = bench(sessions_max=2)
    world.enqueue("live", session_id="s")
    run(world, "a", session_id="t")

    world.enqueue("b", session_id="u")
    refused = refusal(world.enqueue("c", session_id="v"))

    assert world.core.session("", "t") is None
    assert (refused.policy_label, refused.retry_after_ms is not None) == ("sessions", True)
    assert only(world.enqueue("d"), ReplyAccepted), "without a session nobody is kept out"


def test_clients_do_not_see_each_others_sessions() -> None:
    """The same id of another identity is another session."""
    world = bench(session_turns_max=1)
    run(world, "a", identity="alice")

    run(world, "b", identity="bob")

    assert world.core.session("alice", "s") is not world.core.session("bob", "s")
    refused = refusal(world.step(SessionDeleted("carol", "s", 1)))
    assert refused.reason is Reason.NOT_FOUND
    assert world.core.session("alice", "s") is not None


# --- budgets


def test_an_accepted_job_sets_aside_all_that_it_may_take() -> None:
    """ORCH-3099: prompt and max_tokens, of tokens and of cost; the end settles what it took."""
    world = bench()
    budgets = Budgets(tokens=100, cost_micros=200)

    told = left(world.enqueue("a", max_tokens=20, session_budgets=budgets, **TEN))
    world.step(AttemptStarted("a", 1))
    world.end("a", usage=Usage(10, 5))

    assert told == Budgets(tokens=70, cost_micros=150), "10 and 20, at 1 and 2 millionths each"
    assert session(world).spent == Spent(15, 0, 20)
    assert left(world.enqueue("b", max_tokens=20, **TEN)) == Budgets(tokens=55, cost_micros=130)


def test_what_does_not_fit_is_refused_before_it_is_queued() -> None:
    """ORCH-3099: no wait helps where it is spent; what live jobs hold may come back."""
    world = bench()
    run(world, "a", tokens_out=40, max_tokens=40, session_budgets=Budgets(tokens=100))
    refused = refusal(world.enqueue("b", max_tokens=41, **TEN))
    assert (refused.reason, refused.policy_label) == (
        Reason.ADMISSION_REJECT,
        "session-budget-tokens",
    )
    assert (refused.retry_after_ms, refused.metadata["remaining"]) == (None, "50")

    world.enqueue("c", max_tokens=20, **TEN)
    later = refusal(world.enqueue("d", max_tokens=40, **TEN))

    assert later.retry_after_ms is not None
    assert "come back" in later.message
    assert session(world).turns == 2, "a refusal leaves no trace"


def test_a_job_without_max_tokens_may_take_what_is_left() -> None:
    """ORCH-3099: it is told so in its dispatch, and cannot overrun."""
    world = bench()

    (start,) = only(world.enqueue("a", session_budgets=Budgets(tokens=100), **TEN), SendStart)

    assert start.spec.max_tokens == 90
    assert refusal(world.enqueue("b", **TEN)).retry_after_ms is not None


def test_where_the_context_is_tighter_no_bound_is_set() -> None:
    """An engine would refuse more than fits; the context is what is set aside."""
    world = bench()

    effects = world.enqueue("a", session_budgets=Budgets(tokens=1_500), **TEN)

    assert only(effects, SendStart)[0].spec.max_tokens is None
    assert left(effects) == Budgets(tokens=500)


def test_the_job_s_own_budget_counts_beside_that_of_its_session() -> None:
    """The tighter one bounds the job."""
    world = bench()
    own = {"budgets": Budgets(tokens=30), "session_budgets": Budgets(tokens=100)}

    (start,) = only(world.enqueue("a", **own, **TEN), SendStart)

    assert start.spec.max_tokens == 20
    assert session(world).reserved().tokens == 30


def test_time_is_bounded_by_what_is_left_of_it() -> None:
    """The watchdog ends the attempt when the session's time is over."""
    world = bench()
    world.enqueue("a", session_budgets=Budgets(time_ms=1_000), **TEN)
    world.step(AttemptStarted("a", 1))
    world.now_ms = 400
    world.end("a")
    assert session(world).spent.time_ms == 400

    world.enqueue("b", **TEN)
    refused = refusal(world.enqueue("c", **TEN))
    world.at(1_000)

    assert refused.policy_label == "session-budget-time"
    outcome = world.core.jobs["b"].outcome
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.reason is Reason.DECODE_TIMEOUT


def test_the_operator_bounds_every_session() -> None:
    """Whatever its client asks for, the lower one holds."""
    world = bench(session_budgets=SessionBudgets(tokens=50))

    (start,) = only(world.enqueue("a", session_budgets=Budgets(tokens=10**6), **TEN), SendStart)

    assert start.spec.max_tokens == 40


def test_budgets_are_set_when_the_session_is_opened() -> None:
    """They may be repeated, not changed."""
    world = bench()
    run(world, "a", session_budgets=Budgets(tokens=500))
    assert only(world.enqueue("b", session_budgets=Budgets(tokens=500), **TEN), ReplyAccepted)

    refused = refusal(world.enqueue("c", session_budgets=Budgets(tokens=501), **TEN))

    assert refused.reason is Reason.INVALID_PARAMS
    assert refused.violations[0].field == "spec.session_budgets"


def test_a_model_has_its_own_price() -> None:
    """ORCH-3099: in millionths per 1,000 tokens of prompt and of output, rounded up."""
    rails = Guardrails(token_bytes_max=4, price=Price(1, 1), prices={"m": Price(3_000, 5_001)})
    world = Bench(wide(ctx_max=1_000), guardrails=rails)

    world.enqueue("a", max_tokens=2, session_budgets=Budgets(cost_micros=100), **TEN)

    assert session(world).reserved().cost_micros == 30 + 11


def test_a_cost_without_a_price_is_refused() -> None:
    """It could not be counted."""
    world = Bench(wide())

    refused = refusal(world.enqueue("a", session_budgets=Budgets(cost_micros=5), **TEN))

    assert refused.reason is Reason.INVALID_PARAMS
    assert refused.violations[0].field == "spec.session_budgets.cost_micros"


# --- the end


def test_tokens_that_are_generated_again_are_free() -> None:
    """ORCH-3099: a job is charged for its output once, however often it was generated."""
    world = bench()
    world.enqueue("a", max_tokens=50, failover=Failover.VERIFIED_REPLAY, **TEN)
    world.step(AttemptStarted("a", 1))
    world.step(OutputProgressed("a", 1, 30))
    world.fail("a", AttemptErrorKind.ENGINE_DIED)
    world.at(world.now_ms + 20_000)
    world.report(wide(ctx_max=1_000, version=2))
    world.step(AttemptStarted("a", 2))
    world.end("a", attempt=2, usage=Usage(10, 40))

    assert session(world).spent.tokens == 50


def test_a_stopped_job_holds_all_until_its_pool_tells_what_it_took() -> None:
    """What it may still be generating must not be given to another."""
    world = bench()
    world.enqueue("a", max_tokens=50, session_budgets=Budgets(tokens=100), **TEN)
    world.step(AttemptStarted("a", 1))
    world.step(CancelRequested("a", 0))
    assert session(world).reserved().tokens == 60

    world.step(AttemptEnded("a", 1, 1, finish=Finish.CANCELLED, usage=Usage(10, 3)))

    assert session(world).reserved() == Spent()
    assert session(world).spent.tokens == 13


def test_a_failed_job_is_charged_for_what_it_delivered() -> None:
    """Without output it is free."""
    world = bench()
    world.enqueue("a", "b", max_tokens=50, **TEN)
    for job_id in "ab":
        world.step(AttemptStarted(job_id, 1))
    world.step(OutputProgressed("a", 1, 7))

    world.fail("a", AttemptErrorKind.CONTEXT_OVERFLOW)
    assert session(world).spent.tokens == 17
    world.fail("b", AttemptErrorKind.CONTEXT_OVERFLOW)

    assert session(world).spent.tokens == 17


def test_output_since_the_last_word_of_progress_is_charged_too() -> None:
    """ORCH-3099: progress is told once a second, the end tells of all that came before it."""
    world = bench()
    world.enqueue("a", max_tokens=50, session_budgets=Budgets(tokens=100), **TEN)
    world.step(AttemptStarted("a", 1))
    world.step(OutputProgressed("a", 1, 1))
    broken = AttemptError(AttemptErrorKind.CONTEXT_OVERFLOW, "too long")

    world.step(AttemptEnded("a", 1, 1, error=broken, pieces=30))

    assert session(world).spent.tokens == 40


def test_an_accept_that_was_never_durable_leaves_nothing() -> None:
    """Neither a turn nor a session."""
    world = bench()
    world.enqueue("a", max_tokens=5, session_budgets=Budgets(tokens=100), **TEN)

    effects = world.step(AcceptsFailed(("a",)))

    assert world.core.session("", "s") is None
    assert only(effects, SessionForgotten)


def test_what_is_left_falls_while_tokens_flow() -> None:
    """ORCH-3100, HME-021: as if the job ended now; others' holds do not count as left."""
    world = bench()
    budgets = Budgets(tokens=100, time_ms=10_000, cost_micros=1_000)
    world.enqueue(
        "a", max_tokens=50, budgets=Budgets(time_ms=4_000), session_budgets=budgets, **TEN
    )
    world.enqueue("b", max_tokens=20, budgets=Budgets(time_ms=1_000), **TEN)
    job = world.core.jobs["a"]
    assert world.core.remaining(job, 0) == Budgets(70, 4_000, 950)
    world.step(AttemptStarted("a", 1), 100)
    world.step(OutputProgressed("a", 1, 1), 200)

    before = world.core.remaining(job, 200)
    world.step(OutputProgressed("a", 1, 31), 1_200)

    assert before == Budgets(59, 3_800, 938)
    assert world.core.remaining(job, 1_200) == Budgets(29, 2_800, 878)


def test_a_job_of_no_session_tells_what_is_left_of_its_own_budget() -> None:
    """And nothing where it has none."""
    world = bench()
    world.enqueue("a", prompt_bytes=40, budgets=Budgets(tokens=100))
    world.enqueue("b", prompt_bytes=40)
    world.step(AttemptStarted("a", 1))
    world.step(OutputProgressed("a", 1, 15))

    assert world.core.remaining(world.core.jobs["a"], 0) == Budgets(tokens=75)
    assert world.core.remaining(world.core.jobs["b"], 0) is None


# --- deleting and restarting


def test_deleting_a_session_forgets_it_and_cancels_nothing() -> None:
    """Its jobs run on; the next one with its id opens it anew."""
    world = bench()
    world.enqueue("a", max_tokens=50, session_budgets=Budgets(tokens=60), **TEN)

    effects = world.step(SessionDeleted("", "s", 7))

    assert only(effects, ReplySession) == [ReplySession(7, "s")]
    assert only(effects, SessionForgotten)
    assert world.core.jobs["a"].live
    world.enqueue("b", max_tokens=5, **TEN)
    world.step(AttemptStarted("a", 1))
    world.end("a", usage=Usage(10, 50))
    assert session(world).spent == Spent(), "the former session's job is charged to nobody"
    assert refusal(world.step(SessionDeleted("", "t", 8))).reason is Reason.NOT_FOUND


def written(effects: list[Effect]) -> SessionRecord:
    """The latest record of the one session."""
    return only(effects, SessionRecord)[-1]


def test_a_session_survives_a_restart() -> None:
    """What it spent, its turns and its cache are those of its record."""
    world = bench()
    world.enqueue("a", session_budgets=Budgets(tokens=100), **TEN)
    record = written(world.end("a", usage=Usage(10, 30)))

    later = bench()
    later.now_ms = 599_999
    later.step(Recovered(sessions=(record,)))

    found = session(later)
    assert (found.spent.tokens, found.turns, found.kv_tokens) == (40, 1, 40)
    assert found.pool_id == "p"
    refused = refusal(later.enqueue("b", max_tokens=60, **TEN))
    assert refused.policy_label == "session-budget-tokens"


def test_a_session_that_was_silent_over_a_restart_is_forgotten() -> None:
    """And so is its row in the journal."""
    world = bench()
    world.enqueue("a", **TEN)
    record = written(world.end("a"))
    later = bench()
    later.now_ms = 600_000

    assert only(later.step(Recovered(sessions=(record,))), SessionForgotten)
    assert not len(later.core.sessions)


def test_what_a_stopped_job_took_is_charged_in_full_when_nobody_can_tell_any_more() -> None:
    """Its pool's word was lost with the restart."""
    world = bench()
    record = written(world.enqueue("a", max_tokens=50, **TEN))
    later = bench()

    effects = later.step(Recovered(sessions=(record,)))

    assert session(later).spent == Spent(60, 0, 110)
    assert written(effects).held == ()


# --- affinity


@pytest.mark.parametrize(
    ("hint", "failed", "warm"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_cache_counts_only_where_it_is_wanted_and_nothing_failed(
    hint: bool, failed: bool, warm: bool
) -> None:
    """ORCH-3009: kv_hint NONE looks for none, and after a failover nobody counts on one."""
    world = bench()
    run(world, "first")
    world.enqueue("a", kv_reuse=hint, **TEN)
    if failed:
        world.register(wide("q", ctx_max=1_000, host_id="h2", warm_session_ids=("s",)), host="h2")
        world.fail("a", AttemptErrorKind.DEVICE_OUT_OF_MEMORY)
    job = world.core.jobs["a"]
    assert job.attempt is not None

    (started,) = only(
        world.step(AttemptStarted("a", job.attempt.number, kv_warmth=True)), JobStarted
    )

    assert started.kv_warmth is warm
    assert job.decisions[-1].candidates[0].kv_warm is warm


def test_a_new_incarnation_has_lost_the_cache() -> None:
    """The same pool after a restart of its engine is cold."""
    world = bench()
    run(world, "first")
    world.report(wide(ctx_max=1_000, replica_id="p#2"))

    world.enqueue("a", kv_reuse=True, **TEN)

    assert not world.core.jobs["a"].decisions[-1].candidates[0].kv_warm


def test_a_pool_in_the_deterministic_profile_keeps_no_cache() -> None:
    """It never reuses a prompt."""
    world = Bench(wide(deterministic=True))

    run(world, "first")

    assert session(world).pool_id == ""
