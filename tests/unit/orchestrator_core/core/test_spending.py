"""What sessions may spend, and what they are charged."""

from orchestrator_core.core.config import Guardrails, Price, SessionBudgets
from orchestrator_core.core.effects import ReplyAccepted, SendStart
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    OutputProgressed,
    Recovered,
)
from orchestrator_core.core.outcome import Finish, Reason, Usage
from orchestrator_core.core.records import SessionForgotten
from orchestrator_core.core.session import Spent
from orchestrator_core.core.spec import Budgets, Failover
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide
from tests.unit.orchestrator_core.core.spending_bench import TEN, bench, left, run, session, written


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


def test_what_a_stopped_job_took_is_charged_in_full_when_nobody_can_tell_any_more() -> None:
    """Its pool's word was lost with the restart."""
    world = bench()
    record = written(world.enqueue("a", max_tokens=50, **TEN))
    later = bench()

    effects = later.step(Recovered(sessions=(record,)))

    assert session(later).spent == Spent(60, 0, 110)
    assert written(effects).held == ()
