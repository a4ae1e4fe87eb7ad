"""Retries, exhaustion, refusals and what is learned. LO-304, LO-206."""

import pytest

from orchestrator_core.core.effects import JobEnded, SendRelease
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    HeldAttempt,
    HostLost,
    OutputAcknowledged,
    OutputProgressed,
    Tick,
)
from orchestrator_core.core.outcome import Reason, Usage
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.spec import Failover
from orchestrator_core.core.states import AttemptState, JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide


def ended(effects: list) -> tuple[JobState, Reason | None]:
    """How the one job of a step ended."""
    (effect,) = only(effects, JobEnded)
    return effect.state, effect.outcome.error and effect.outcome.error.reason


@pytest.mark.parametrize(
    ("kind", "state", "reason"),
    [
        (AttemptErrorKind.INVALID_REQUEST, JobState.FAILED, Reason.ENGINE_ERROR),
        (AttemptErrorKind.CONTEXT_OVERFLOW, JobState.FAILED, Reason.ENGINE_ERROR),
        (AttemptErrorKind.OUTPUT_TOO_LARGE, JobState.FAILED, Reason.ENGINE_ERROR),
        (AttemptErrorKind.REPLAY_MISMATCH, JobState.FAILED, Reason.WORKER_RESET),
        (AttemptErrorKind.TIMEOUT, JobState.EXPIRED, Reason.DEADLINE),
    ],
)
def test_what_another_replica_would_answer_too_ends_the_job(
    kind: AttemptErrorKind, state: JobState, reason: Reason
) -> None:
    """There is a second pool, and it is not tried."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a")

    assert ended(bench.fail("a", kind)) == (state, reason)


@pytest.mark.parametrize(
    "kind",
    [
        AttemptErrorKind.ENGINE_ERROR,
        AttemptErrorKind.ENGINE_DIED,
        AttemptErrorKind.DEVICE_OUT_OF_MEMORY,
        AttemptErrorKind.HOST_OUT_OF_MEMORY,
    ],
)
def test_what_another_replica_may_do_better_is_tried_there(kind: AttemptErrorKind) -> None:
    """Nothing was delivered, so the job goes to the other pool without a word."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a")

    (record,) = only(bench.fail("a", kind), DispatchRecord)

    assert (record.attempt, record.pool_id) == (2, "q")


def test_tries_are_bounded() -> None:
    """An engine that dies on the job every time does not get it for ever."""
    bench = Bench(wide(), attempts_max=3)
    bench.enqueue("a")
    for number in (1, 2):
        bench.fail("a", AttemptErrorKind.ENGINE_DIED, number)
        bench.report(wide(replica_id=f"p#{number + 1}"))

    effects = bench.fail("a", AttemptErrorKind.ENGINE_DIED, 3)

    assert ended(effects) == (JobState.FAILED, Reason.REPLICA_EXHAUSTED)


def test_a_replay_without_a_replica_left_does_not_wait_for_nothing() -> None:
    """LO-304: a pool of another replica set cannot go on, so the job is exhausted."""
    bench = Bench(wide("p"), wide("q", engine_version="2"))
    bench.enqueue("a", failover=Failover.VERIFIED_REPLAY)
    assert bench.core.jobs["a"].attempt is not None
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, 1))

    effects = bench.fail("a", AttemptErrorKind.ENGINE_ERROR)

    assert ended(effects) == (JobState.FAILED, Reason.REPLICA_EXHAUSTED)


def test_an_attempt_that_is_being_cancelled_keeps_its_slot() -> None:
    """ORCH-3026: until the pool confirms, whatever it says meanwhile."""
    bench = Bench(wide(slots=1))
    bench.enqueue("a", "b")
    bench.step(CancelRequested("a", 0))
    attempt = bench.core.jobs["a"].attempt
    assert attempt is not None

    assert bench.step(AttemptStarted("a", 1)) == []
    assert attempt.state is AttemptState.CANCELLING
    assert bench.core.pools["p"].slots_free() == 0
    (record,) = only(bench.end("a"), DispatchRecord)

    assert record.job_id == "b"
    assert bench.core.jobs["a"].state is JobState.CANCELLED


def test_output_of_an_old_attempt_does_not_count_as_delivered() -> None:
    """LO-304: attempts never mix, so the silent restart stays possible."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a")
    bench.fail("a", AttemptErrorKind.ENGINE_DIED)

    bench.step(OutputProgressed("a", 1, 1))

    assert not bench.core.jobs["a"].delivered
    assert bench.core.jobs["a"].first_output_ms is None


def test_the_record_of_decisions_is_bounded() -> None:
    """A pool that refuses for ever does not fill the memory."""
    bench = Bench(wide(), refusal_backoff_ms=1, refusal_backoff_max_ms=1)
    bench.enqueue("a")
    for number in range(1, 60):
        bench.step(AttemptRefused("a", number, "no"))
        bench.at(bench.now_ms + 1)

    job = bench.core.jobs["a"]

    assert job.attempts_made == 60
    assert [d.attempt for d in job.decisions] == list(range(45, 61))


def test_finished_jobs_teach_rate_start_and_length() -> None:
    """LO-206: five tokens in 400 ms after the first are a hundred milliseconds each."""
    bench = Bench(wide())
    bench.enqueue("a", session_id="s", kv_reuse=True)
    bench.step(AttemptStarted("a", 1), 50)
    bench.step(OutputProgressed("a", 1, 1), 100)

    bench.now_ms = 500
    bench.end("a", usage=Usage(tokens_in=3, tokens_out=5))

    line = bench.core.pools["p"].rates.decode
    assert (line.weight, line.sum_x, line.sum_y) == (1.0, 0.0, 100.0)
    assert bench.core.tokens_per_s(bench.core.pools["p"]) < 20.0, "the prior, now led down"
    assert bench.core.pools["p"].rates.first.sum_y == 100.0
    assert bench.state.predictor.models["m"].output_tokens == 5.0
    assert bench.core.jobs["a"].usage.first_token_ms == 100
    assert bench.core.jobs["a"].usage.decode_time_ms == 400
    session = bench.core.session("", "s")
    assert session is not None
    assert (session.pool_id, session.replica_id, session.kv_tokens) == ("p", "p#1", 8)


def test_what_a_former_incarnation_took_is_no_lesson_about_the_present_one() -> None:
    """LO-206: a pool that was reloaded runs another model, and an end may come after its report."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1), 10)
    bench.step(OutputProgressed("a", 1, 1), 20)
    bench.report(wide(replica_id="p#2", model_id="other"))
    before = bench.core.tokens_per_s(bench.core.pools["p"])

    bench.step(Tick(), 9_000)
    bench.end("a", usage=Usage(tokens_in=1, tokens_out=3))

    assert bench.core.jobs["a"].state is JobState.FINISHED
    assert bench.core.tokens_per_s(bench.core.pools["p"]) == before
    assert bench.state.predictor.known_model("m").finished == 1, "of its own model it is one"


def test_a_host_that_was_cut_off_has_not_become_slow() -> None:
    """LO-206: what its engine wrote meanwhile comes at once when it is back."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1), 10)
    bench.step(OutputProgressed("a", 1, 1), 20)
    bench.step(HostLost("h", 1))
    bench.now_ms = 9_000
    bench.register(wide(version=2), held=[HeldAttempt("a", 1, "p", "p#1", ended=True)])
    before = bench.core.tokens_per_s(bench.core.pools["p"])

    bench.end("a", usage=Usage(tokens_in=1, tokens_out=3))

    assert bench.core.jobs["a"].state is JobState.FINISHED
    assert bench.core.tokens_per_s(bench.core.pools["p"]) == before


def test_what_waited_for_the_journal_says_nothing_of_how_fast_prompts_are_read() -> None:
    """LO-206: its host had it seconds after the decision; what it wrote then is a lesson."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1), 5_000)
    bench.step(OutputProgressed("a", 1, 1), 5_100)
    bench.now_ms = 5_200
    bench.end("a", usage=Usage(tokens_in=1, tokens_out=3))

    rates = bench.core.pools["p"].rates
    assert (rates.first.weight, rates.decode.weight) == (0.0, 1.0)


@pytest.mark.parametrize(("told_ms", "shown_ms"), [(None, 1), (90, 90), (9_999, 451)])
def test_the_time_for_the_output_is_the_engines_own(told_ms: int | None, shown_ms: int) -> None:
    """Output that comes at once took longer than it took to arrive; but not longer than the job."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1), 50)
    bench.step(OutputProgressed("a", 1, 1), 450)

    bench.now_ms = 451
    bench.end("a", usage=Usage(tokens_in=3, tokens_out=5, decode_time_ms=told_ms))

    assert bench.core.jobs["a"].usage.decode_time_ms == shown_ms


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AttemptErrorKind.ENGINE_DIED, Reason.WORKER_RESET),
        (AttemptErrorKind.ENGINE_ERROR, Reason.ENGINE_ERROR),
    ],
)
def test_a_loss_after_output_says_whether_the_engine_died_or_broke(
    kind: AttemptErrorKind, reason: Reason
) -> None:
    """Without failover the job ends with what happened to it."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, 1))

    assert ended(bench.fail("a", kind)) == (JobState.FAILED, reason)


def test_a_refusal_for_good_counts_as_a_try_elsewhere_first() -> None:
    """A replica that can never run the job is left alone; with no other the job ends."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a")

    (record,) = only(bench.step(AttemptRefused("a", 1, "unsupported")), DispatchRecord)

    assert record.pool_id == "q"
    assert ended(bench.step(AttemptRefused("a", 2, "unsupported"))) == (
        JobState.FAILED,
        Reason.REPLICA_EXHAUSTED,
    )


def test_output_that_was_delivered_stays_at_its_host_until_the_replay_runs() -> None:
    """A crash in between must still find the proof that output was delivered."""
    bench = Bench(wide("p"), wide("q"))
    bench.enqueue("a", failover=Failover.VERIFIED_REPLAY)
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, 1))

    lost = bench.fail("a", AttemptErrorKind.ENGINE_ERROR)
    again = bench.step(AttemptStarted("a", 2))

    assert only(lost, SendRelease) == []
    assert [(release.job_id, release.attempt) for release in only(again, SendRelease)] == [("a", 1)]


def test_acknowledged_output_may_be_forgotten_by_its_host() -> None:
    """The job stays known; nothing is released of a job that runs or whose slot is still taken."""
    bench = Bench(wide("p"))
    bench.enqueue("a", "b", "c")
    bench.end("a")
    bench.step(CancelRequested("b", 0))

    done = bench.step(OutputAcknowledged("a"))
    unconfirmed = bench.step(OutputAcknowledged("b"))
    running = bench.step(OutputAcknowledged("c"))
    unknown = bench.step(OutputAcknowledged("nobody"))

    assert done == [SendRelease("h", "a", 1)]
    assert unconfirmed == running == unknown == []
    assert bench.core.jobs["a"].state is JobState.FINISHED
