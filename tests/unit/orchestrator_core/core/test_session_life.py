"""How sessions begin, end and outlive a restart, and what is kept of their caches."""

import pytest

from orchestrator_core.core.effects import JobStarted, ReplyAccepted, ReplySession
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    Recovered,
    SessionDeleted,
)
from orchestrator_core.core.outcome import Reason, Usage
from orchestrator_core.core.records import SessionForgotten
from orchestrator_core.core.session import Spent
from orchestrator_core.core.spec import Budgets
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide
from tests.unit.orchestrator_core.core.spending_bench import TEN, bench, run, session, written

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
