"""After a pause of the event loop nobody is judged by a silence that nobody could have heard."""

from orchestrator_core.core.drain import DrainRate
from orchestrator_core.core.effects import JobEnded, SendStart
from orchestrator_core.core.events import (
    AttemptStarted,
    HostLost,
    OutputProgressed,
    Recovered,
    Stalled,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.outcome import Reason, Usage
from orchestrator_core.core.records import PoolDrainRecord
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, refusal, wide

HALF_AN_HOUR_MS = 1_800_000


def test_the_idle_watchdog_is_extended_by_a_pause() -> None:
    """OC-CORE-1022: and by no more than that."""
    bench = Bench(wide(), idle_timeout_ms=1_000)
    bench.enqueue("a")
    bench.step(AttemptStarted("a", 1), 100)
    bench.step(OutputProgressed("a", 1, 1), 400)

    assert not only(bench.step(Stalled(4_000), 5_000), JobEnded)
    assert not only(bench.at(5_399), JobEnded)

    (ended,) = only(bench.at(5_400), JobEnded)
    assert ended.outcome.error is not None
    assert ended.outcome.error.reason is Reason.DECODE_TIMEOUT


def test_without_a_pause_the_watchdog_fires() -> None:
    """The silence was real."""
    bench = Bench(wide(), idle_timeout_ms=1_000)
    bench.enqueue("a")
    bench.step(OutputProgressed("a", 1, 1), 400)

    assert only(bench.at(5_000), JobEnded)


def test_promises_about_real_time_are_not_extended() -> None:
    """A deadline is the client's; a pause of ours does not move it. Nor does the wall time."""
    bench = Bench(wide(slots=1), wall_timeout_ms=2_000)
    bench.enqueue("wall")
    bench.enqueue("late", deadline_ms=3_000)

    ended = only(bench.step(Stalled(4_000), 5_000), JobEnded)

    assert {effect.job_id for effect in ended} == {"wall", "late"}


def test_pools_stay_fresh_over_a_pause() -> None:
    """Their reports could not be read; what waits goes to them at once."""
    bench = Bench(wide(slots=1), stale_after_ms=1_000)
    bench.enqueue("a")
    bench.now_ms = 900
    bench.report(wide(slots=1, version=2))

    bench.step(Stalled(10_000), 11_000)
    bench.end("a")

    assert only(bench.enqueue("b"), SendStart)
    bench.at(12_001)
    assert not only(bench.enqueue("c"), SendStart), "and only for as long as they would have been"


def test_the_grace_of_a_lost_host_and_of_a_silent_audience_are_extended() -> None:
    """Whoever wanted to come back could not."""
    bench = Bench(wide(), reattach_grace_ms=1_000, disconnect_grace_ms=1_000)
    bench.enqueue("a", cancel_on_disconnect=True)
    bench.step(HostLost("h", 1))

    bench.step(Stalled(5_000), 5_500)
    held = bench.core.jobs["a"].state

    assert held is JobState.DISPATCHED
    bench.step(SubscribersChanged("a", 1))
    bench.at(6_000)
    assert bench.core.jobs["a"].state is not JobState.DISPATCHED, "the host had its second"


def test_hosts_that_could_not_come_back_meanwhile_are_not_forgotten() -> None:
    """Their pools go after a day of silence that somebody could have heard."""
    bench = Bench(wide(), host_retention_ms=1_000)
    bench.step(HostLost("h", 1))

    bench.step(Stalled(5_000), 5_500)
    kept = list(bench.core.pools)
    bench.at(6_000)

    assert kept == ["p"]
    assert not bench.core.pools


def test_after_a_restart_hosts_are_waited_for_over_a_pause() -> None:
    """What they could serve is refused for now, not for good; for as long as without the pause."""
    bench = Bench(reattach_grace_ms=1_000)
    bench.step(Recovered(drains=(PoolDrainRecord("gone", 0, 1),)))
    bench.register(wide("q"))

    bench.step(Stalled(5_000), 5_500)
    soon = refusal(bench.enqueue("a", model="other"))
    bench.at(6_000)
    late = refusal(bench.enqueue("b", model="other"))

    assert soon.reason is Reason.POOL_UNAVAILABLE
    assert late.reason is Reason.INCOMPATIBLE_MODEL


def test_a_machine_that_slept_has_learned_nothing_of_speed() -> None:
    """LO-206: what ran and waited meanwhile took as long as the sleep, whatever the pool is."""
    bench = Bench(wide(slots=1))
    bench.enqueue("runs", "waits")
    bench.step(AttemptStarted("runs", 1), 50)
    bench.step(OutputProgressed("runs", 1, 1), 100)
    before = bench.core.tokens_per_s(bench.core.pools["p"])

    bench.step(Stalled(HALF_AN_HOUR_MS), HALF_AN_HOUR_MS + 100)
    bench.end("runs", usage=Usage(tokens_in=1, tokens_out=5))
    bench.end("waits", usage=Usage(tokens_in=1, tokens_out=5))

    assert bench.core.jobs["waits"].state is JobState.FINISHED
    assert bench.core.tokens_per_s(bench.core.pools["p"]) == before
    assert not bench.state.predictor.residuals.judged
    assert not bench.state.predictor.residuals.start.kept


def test_after_a_short_pause_what_took_long_is_a_lesson_still() -> None:
    """LO-206: a busy machine has such pauses all the time."""
    bench = Bench(wide())
    bench.enqueue("a")
    bench.step(OutputProgressed("a", 1, 1), 100)
    bench.step(Stalled(1_000), 5_000)

    bench.step(Tick(), 10_000)
    bench.end("a", usage=Usage(tokens_in=1, tokens_out=5))

    assert bench.core.pools["p"].rates.decode.weight == 1.0
    assert bench.state.predictor.residuals.judged == 1


def test_a_pause_is_no_time_in_which_nobody_left_the_queue() -> None:
    """ORCH-3017: who is refused is told to come back by the rate at which places become free."""
    rate = DrainRate()
    rate.entered(0)
    for n in range(1, 4):
        rate.left(5, 100 * n, freed=True)

    rate.paused(HALF_AN_HOUR_MS, HALF_AN_HOUR_MS + 300)
    rate.left(5, HALF_AN_HOUR_MS + 400, freed=True)

    assert rate.gap_ms(HALF_AN_HOUR_MS + 400) == 100


def test_output_is_kept_for_who_could_not_fetch_it_meanwhile() -> None:
    """LO-302: for as long as without the pause, and no longer."""
    bench = Bench(wide(), retention_ms=1_000)
    bench.enqueue("a")
    bench.end("a")

    bench.step(Stalled(5_000), 5_500)
    kept = "a" in bench.core.jobs
    bench.at(6_000)

    assert kept
    assert "a" not in bench.core.jobs
