"""Counts of jobs add up, and labels and buckets are the contract's."""

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    Event,
    Recovered,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.records import AcceptRecord, DispatchRecord
from orchestrator_core.core.spec import Priority
from orchestrator_core.errors import RefusalError
from orchestrator_core.telemetry import job_rows
from orchestrator_core.telemetry.instruments import Board, Counter
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.telemetry.harness import Harness, assert_adds_up, snapshot, spec


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(1, 8),
    policy=st.sampled_from(QueuePolicy),
    scoring=st.booleans(),
)
def test_what_was_enqueued_ends_once_or_lives(
    seed: int, capacity: int, policy: QueuePolicy, *, scoring: bool
) -> None:
    """Through crashes, failed commits, drops and retries; memory is kept of live jobs only."""
    config = CoreConfig(
        queue_capacity=capacity,
        queue_policy=policy,
        performance_scoring=scoring,
        finished_jobs_max=20,
        retention_ms=2_000,
    )
    harness = Harness(config)

    def observe(world: World, _: Event, effects: list[Effect]) -> None:
        nonlocal harness
        if harness.core is not world.core:
            harness = Harness(core=world.core)
        harness.telemetry.steps.observe(effects, world.core, world.now_ms)
        live = sum(job.live for job in world.core.jobs.values())
        assert harness.telemetry.steps.tracked == live
        waiting = {
            job_id
            for job_id, tracked in harness.telemetry.steps._tracked.items()
            if tracked.queued_ms is not None
        }
        assert len(waiting) == world.core.queue_depth()
        attempts = sum(job.attempt is not None for job in world.core.jobs.values() if job.live)
        assert harness.open_spans <= attempts, "an attempt has one open span, recovered ones none"

    World(seed, config, observe=observe).run(150)

    assert_adds_up(harness)
    assert harness.total("queue_depth") == harness.core.queue_depth()
    assert harness.total("orchd_admission_queue_depth") == harness.core.queue_depth()
    harness.spans()


def test_a_finished_job_counts_once_with_the_labels_of_its_replica() -> None:
    """Tokens and the start go to the incarnation that served the job."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec(priority=Priority.BATCH))
    harness.run()

    where = {"engine": "mock", "engine_version": "1.0", "pool_id": "p", "replica_id": "p#1"}
    assert harness.total("tasks_started_total", **where, priority="batch") == 1
    assert harness.total("tokens_in_total", **where) == 11
    assert harness.total("tokens_out_total", **where) == 4
    assert harness.total("tasks_finished_total", pool_id="p", outcome="finished") == 1
    assert harness.total("orchd_admission_enqueued_total", outcome="accepted") == 1
    assert_adds_up(harness)


def test_latencies_have_the_buckets_of_the_contract() -> None:
    """A first token after 25 ms and a decode of 100 ms land in the first buckets."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec())
    harness.run()

    (first,) = harness.series("latency_first_token_ms").values()
    (decode,) = harness.series("latency_decode_ms").values()
    assert first.explicit_bounds == (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
    assert decode.explicit_bounds == (
        *(250, 500, 1000, 1500, 2000, 3000),
        *(4000, 6000, 8000, 12_000),
    )
    assert (first.sum, first.bucket_counts[0]) == (25, 1)
    assert (decode.sum, decode.bucket_counts[0]) == (100, 1)


def test_queue_wait_and_prediction_error_are_measured() -> None:
    """The second job waited for the first; its predictions are compared with what came."""
    harness = Harness()
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("first"))
    harness.enqueue(spec("second"))

    harness.run("first")
    harness.run("second")

    (wait,) = harness.series("orchd_queue_wait_time_ms").values()
    assert (wait.count, wait.sum) == (2, 125)
    errors = harness.series("prediction_error_ms")
    kinds = {dict(labels)["kind"] for labels in errors}
    assert kinds == {"start", "end"}
    assert sum(point.count for point in errors.values()) == 4
    (age,) = harness.series("snapshot_age_ms").values()
    assert (age.count, age.max) == (2, 125)


def test_a_cancel_counts_with_who_asked() -> None:
    """Client and disconnect are told apart."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    harness.step(CancelRequested("j", reply_to=2, why="disconnect"))

    assert harness.total("tasks_canceled_total", reason="disconnect", pool_id="p") == 1
    assert_adds_up(harness)


def test_a_full_queue_counts_as_backpressure() -> None:
    """Rejections name reason and policy."""
    harness = Harness(CoreConfig(queue_capacity=1))
    harness.host(snapshot(slots_total=1))

    for name in ("running", "waiting", "rejected"):
        harness.enqueue(spec(name))

    assert harness.total("tasks_rejected_total", engine="mock", reason="ADMISSION_REJECT") == 1
    assert harness.total("admission_backpressure_events_total", policy="reject") == 1
    assert harness.total("orchd_admission_rejected_total", reason="queue_full") == 1
    assert harness.total("orchd_admission_enqueued_total", outcome="rejected") == 1
    assert harness.total("queue_depth", engine="mock", priority="interactive") == 1
    assert_adds_up(harness)


def test_every_rule_of_admission_has_a_label_of_its_own() -> None:
    """All that one server can refuse by fit the cardinality budget, and only some mean "full"."""
    harness = Harness()
    full = ("drop-lru", "lanes")
    others = (
        *("throttle-requests", "throttle-tokens", "throttle-queued"),
        *("budget", "deadline-unlikely"),
    )

    for label in (*full, *others):
        refused = Refusal(Reason.ADMISSION_REJECT, "no", policy_label=label)
        harness.telemetry._metrics.rejected(refused, "", None, 0)

    for label in (*full, *others):
        assert harness.total("admission_backpressure_events_total", policy=label) == 1
    assert harness.total("tasks_rejected_total", reason="ADMISSION_REJECT") == 7
    assert harness.total("orchd_admission_rejected_total", reason="queue_full") == 2
    assert harness.total("orchd_admission_rejected_total", reason="policy_violation") == 5


def test_a_dropped_job_counts_as_backpressure() -> None:
    """Displacing a job is backpressure too."""
    harness = Harness(CoreConfig(queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU))
    harness.host(snapshot(slots_total=1))

    for name in ("running", "old", "new"):
        harness.enqueue(spec(name))

    assert harness.total("admission_backpressure_events_total", policy="drop-lru") == 1
    assert harness.total("tasks_finished_total", outcome="dropped") == 1
    assert_adds_up(harness)


def test_a_cancel_of_an_unknown_job_is_no_rejected_task() -> None:
    """Only enqueues can be rejected."""
    harness = Harness()

    harness.step(CancelRequested("nobody", reply_to=1))

    assert harness.total("tasks_rejected_total") == 0


def test_a_job_that_starts_twice_counts_as_started_once() -> None:
    """Started counts jobs, not attempts."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    harness.enqueue(spec())
    harness.step(AttemptStarted("j", 1))

    died = AttemptError(AttemptErrorKind.ENGINE_DIED, "gone")
    harness.step(AttemptEnded("j", 1, 2, error=died))
    harness.step(AttemptStarted("j", 2))

    assert harness.total("tasks_started_total") == 1


def test_recovered_jobs_count_as_enqueued_here() -> None:
    """Without that, a restart would make more jobs end than were enqueued."""
    first = Harness()
    first.host()
    records = first.enqueue(spec()) + first.enqueue(spec("waits"))
    second = Harness()

    second.step(
        Recovered(
            tuple(r for r in records if isinstance(r, AcceptRecord)),
            tuple(r for r in records if isinstance(r, DispatchRecord)),
        )
    )

    assert second.total("tasks_enqueued_total") == 2
    assert_adds_up(second)


def test_admission_latency_runs_from_receipt_to_the_answer() -> None:
    """The answer waits for the journal, so the measure ends when the call does."""
    harness = Harness()
    harness.host()

    with harness.telemetry.rpc("enqueue", None):
        harness.enqueue(spec())
        harness.clock_ns += 7_000_000

    (latency,) = harness.series("admission_latency_ms").values()
    assert (latency.count, latency.sum) == (1, 7.0)
    assert dict(latency.attributes) == {"engine": "mock", "priority": "interactive"}


def test_refusals_count_once_wherever_they_come_from() -> None:
    """One by the core, one by validation before it, one by the journal after it."""
    harness = Harness()
    journal = Refusal(Reason.STORE_UNAVAILABLE, "the journal cannot be written")
    invalid = Refusal(Reason.INVALID_PARAMS, "bad field")
    core = Refusal(Reason.POOL_UNAVAILABLE, "no pool")

    with suppress(RefusalError), harness.telemetry.rpc("enqueue", None):
        harness.enqueue(spec())
        raise RefusalError(core)
    for refusal in (invalid, journal):
        with suppress(RefusalError), harness.telemetry.rpc("enqueue", None):
            raise RefusalError(refusal)
    with suppress(RefusalError), harness.telemetry.rpc("cancel", None):
        raise RefusalError(Refusal(Reason.NOT_FOUND, "no such job"))

    counts = {
        dict(labels)["reason"]: point.value
        for labels, point in harness.series("tasks_rejected_total").items()
    }
    assert counts == {"POOL_UNAVAILABLE": 1, "INVALID_PARAMS": 1, "STORE_UNAVAILABLE": 1}
    errors = [(span.attributes or {})["error.type"] for span in harness.spans("enqueue")]
    assert errors == ["POOL_UNAVAILABLE", "INVALID_PARAMS", "STORE_UNAVAILABLE"]
    assert harness.series("admission_latency_ms") == {}


def test_deadlines_count_by_what_was_told_and_what_came() -> None:
    """A job that was told it would be late, and one that was not."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec("in-time", deadline_ms=harness.now_ms + 3_600_000))
    harness.run("in-time")
    harness.enqueue(spec("without"))
    harness.run("without")

    assert harness.total("deadline_outcomes_total") == 1
    assert harness.total("deadline_outcomes_total", told="0.9", met="yes") == 1


def test_an_export_shows_one_instant_whatever_happens_meanwhile() -> None:
    """What is read while the loop goes on is what `freeze` took before the export began."""
    seen: list[float] = []
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    board = Board(meter)
    first = Counter(board, job_rows.ENQUEUED)
    meter.create_observable_gauge("between", [lambda _: _happen(first, second, board)])
    second = Counter(board, job_rows.FINISHED)
    _happen(first, second, board)

    for _ in range(3):
        data = reader.get_metrics_data()
        assert data is not None
        values = {
            metric.name: sum(point.value for point in metric.data.data_points)
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
        }
        assert values["tasks_enqueued_total"] == values["tasks_finished_total"]
        seen.append(values["tasks_enqueued_total"])

    assert seen == [1, 2, 3]


def _happen(first: Counter, second: Counter, board: Board) -> list[Observation]:
    first.add(1, "", "", "", "", "batch")
    second.add(1, "", "", "finished")
    board.freeze()
    return []


def test_what_alerts_look_at_is_there_before_its_first_increment() -> None:
    """A rate does not see the increment with which a series is born."""
    harness = Harness()
    kinds = ("queue_full", "invalid_request", "policy_violation")
    assert _born(harness, "orchd_admission_rejected_total", "reason") == {*kinds}
    assert _born(harness, "deadline_outcomes_total", "met") == {"yes", "no"}

    harness.host(snapshot("p"))
    report = snapshot_pb2.PoolSnapshot(pool_id="p", replica_id="p#1", engine="mock")
    harness.telemetry.host_reported(report)

    modes = {"restart", "verified_replay", "continue"}
    assert _born(harness, "orchd_host_losses_total", "host_id") == {"h"}
    assert _born(harness, "failovers_total", "mode") == modes
    assert _born(harness, "tasks_finished_total", "outcome") == {"finished", "failed"}
    assert {"unknown", "engine_exited", "operator"} < _born(
        harness, "engine_restarts_total", "reason"
    )


def _born(harness: Harness, name: str, label: str) -> set[str]:
    """The values of a label over the series of a counter, all of which are at 0."""
    series = harness.series(name)
    assert {point.value for point in series.values()} == {0}
    return {dict(key)[label] for key in series}
