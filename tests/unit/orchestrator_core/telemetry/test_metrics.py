"""Counts add up, labels and buckets are the contract's, and no label grows without bound."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.auth.roles import ALLOWED
from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.effects import AcceptRecord, DispatchRecord, Effect
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    Event,
    HostLost,
    OutputProgressed,
    Recovered,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Priority
from orchestrator_core.errors import RefusalError
from orchestrator_core.telemetry import job_rows
from orchestrator_core.telemetry.fleet import DeviceGauges, PoolGauges
from orchestrator_core.telemetry.instruments import OTHER, Board, Counter, LabelBudget
from orchestrator_core.telemetry.metric_row import BUDGETS
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.telemetry.harness import Harness, snapshot, spec

OUTCOMES = ("finished", "cancelled", "dropped", "expired", "failed", "retracted")


def _assert_adds_up(harness: Harness) -> None:
    live = sum(job.live for job in harness.core.jobs.values())
    by_outcome = [harness.total("tasks_finished_total", outcome=name) for name in OUTCOMES]
    assert harness.total("tasks_finished_total") == sum(by_outcome)
    assert harness.total("tasks_enqueued_total") == sum(by_outcome) + live
    assert harness.telemetry.steps.tracked == live


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

    _assert_adds_up(harness)
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
    _assert_adds_up(harness)


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
    _assert_adds_up(harness)


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
    _assert_adds_up(harness)


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
    _assert_adds_up(harness)


def test_a_cancel_of_an_unknown_job_is_no_rejected_task() -> None:
    """Only enqueues can be rejected."""
    harness = Harness()

    harness.step(CancelRequested("nobody", reply_to=1))

    assert harness.total("tasks_rejected_total") == 0


def test_a_lost_attempt_counts_as_failover_of_the_pool_that_lost_it() -> None:
    """The label names where it was lost, although the job runs elsewhere by then."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    harness.enqueue(spec())
    harness.step(AttemptStarted("j", 1))
    harness.step(OutputProgressed("j", 1, 1))

    died = AttemptError(AttemptErrorKind.ENGINE_DIED, "gone")
    harness.step(AttemptEnded("j", 1, 2, error=died))
    harness.enqueue(spec("k"))
    harness.step(AttemptEnded("k", 1, 3, error=died))

    lost = {dict(labels)["mode"] for labels in harness.series("failovers_total")}
    assert lost == {"restart"}
    assert harness.total("failovers_total") == 1
    assert harness.total("tasks_finished_total", outcome="failed") == 1
    _assert_adds_up(harness)


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
    _assert_adds_up(second)


def test_pool_states_show_lost_hosts() -> None:
    """Each pool is in exactly one state; one whose host is gone is disconnected."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q", state=PoolState.DRAINING))

    assert harness.total("pool_state", pool_id="p", state="ready") == 1
    assert harness.total("pool_state", pool_id="q", state="draining") == 1
    assert harness.total("pool_state") == 2
    harness.step(HostLost("h", 1))
    assert harness.total("pool_state", state="disconnected") == 2
    assert harness.total("pool_state", state="ready") == 0


class _Fleet:
    def __init__(self, *pools: PoolGauges) -> None:
        self._pools = pools

    def pools(self) -> tuple[PoolGauges, ...]:
        return self._pools


def test_gauges_show_what_is_reported_and_nothing_else() -> None:
    """A device that reports no utilisation has no such series; absent is not 0."""
    harness = Harness()
    devices = (DeviceGauges("GPU-1", 0.5, 1024), DeviceGauges("GPU-2", None, None))

    harness.metrics.sample(
        harness.core, _Fleet(PoolGauges("p", "p#1", "mock", "1.0", 0.25, devices))
    )

    data = harness.reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: [(dict(p.attributes or {}), p.value) for p in metric.data.data_points]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name in ("kv_cache_usage_ratio", "gpu_utilization", "vram_used_bytes")
    }
    where = {"engine": "mock", "engine_version": "1.0", "pool_id": "p", "replica_id": "p#1"}
    assert points == {
        "kv_cache_usage_ratio": [(where, 0.25)],
        "gpu_utilization": [({**where, "device": "GPU-1"}, 0.5)],
        "vram_used_bytes": [({**where, "device": "GPU-1"}, 1024)],
    }


def test_a_queue_series_goes_to_zero_instead_of_vanishing() -> None:
    """A scrape that finds no series could not tell empty from unknown."""
    harness = Harness()
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("running"))
    harness.enqueue(spec("waiting"))
    assert harness.total("queue_depth", engine="mock") == 1

    harness.step(CancelRequested("waiting", reply_to=2))

    depths = harness.series("queue_depth")
    assert [p.value for key, p in depths.items() if ("engine", "mock") in key] == [0]


def test_jobs_that_fail_before_they_have_a_pool_are_counted_from_0() -> None:
    """All of them at once, as when their model is retired: a rate sees no first increment."""
    harness = Harness()
    before = harness.series("tasks_finished_total")
    harness.host()
    after = harness.series("tasks_finished_total")

    unplaced = frozenset({("engine", ""), ("pool_id", ""), ("outcome", "failed")})
    named = frozenset({("engine", "mock"), ("pool_id", ""), ("outcome", "failed")})
    assert before[unplaced].value == after[unplaced].value == 0
    harness.metrics.reported(snapshot_pb2.PoolSnapshot(pool_id="p", replica_id="1", engine="mock"))
    assert harness.series("tasks_finished_total")[named].value == 0


def test_every_method_keeps_its_name() -> None:
    """A server that was asked for everything does not count its last methods as `other`."""
    methods = {method.rpartition("/")[2] for method in ALLOWED}
    budget = LabelBudget()

    assert {budget.admit("method", method) for method in sorted(methods)} == methods


@pytest.mark.parametrize("label", sorted(BUDGETS))
def test_a_label_never_has_more_values_than_its_budget(label: str) -> None:
    """`other` included; values that were admitted stay themselves."""
    budget = LabelBudget()

    seen = {budget.admit(label, f"value-{n}") for n in range(BUDGETS[label] * 2)}

    assert len(seen) == BUDGETS[label]
    assert OTHER in seen
    assert budget.admit(label, "value-0") == "value-0"
    assert budget.admit(label, "") == ""


def test_many_replicas_fold_into_other_and_still_add_up() -> None:
    """Restarts without end do not grow the scrape."""
    harness = Harness()
    for n in range(BUDGETS["replica_id"] + 50):
        harness.host(snapshot(replica_id=f"p#{n}"))
        harness.enqueue(spec(f"j{n}"))
        harness.run(f"j{n}")

    replicas = {dict(labels)["replica_id"] for labels in harness.series("tasks_started_total")}
    assert len(replicas) == BUDGETS["replica_id"]
    assert harness.total("tasks_started_total", replica_id=OTHER) == 51
    _assert_adds_up(harness)


def test_engine_names_of_refused_requests_do_not_become_labels() -> None:
    """A client cannot use up the budget with names it made up; real names are shown."""
    harness = Harness()
    harness.host()

    for n in range(20):
        harness.enqueue(spec(f"j{n}", engine=f"invented-{n}"))
    harness.enqueue(spec("real"))
    harness.enqueue(spec("real", digest="another body"))

    by_engine = {
        dict(k)["engine"]: p.value for k, p in harness.series("tasks_rejected_total").items()
    }
    assert by_engine == {OTHER: 20, "mock": 1}


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


def _report(harness: Harness, replica_id: str, reason: str = "UNSPECIFIED") -> None:
    harness.telemetry.host_reported(
        snapshot_pb2.PoolSnapshot(
            pool_id="p",
            replica_id=replica_id,
            engine="mock",
            state_reason=snapshot_pb2.PoolStateReason.Value(f"POOL_STATE_REASON_{reason}"),
        )
    )


def test_a_new_incarnation_is_a_restart_with_the_first_reason_that_was_given() -> None:
    """The first incarnation is none; waiting for the next start is no reason; READY clears it."""
    harness = Harness()
    for replica_id, reason in (
        ("p#1", "UNSPECIFIED"),
        ("p#1", "CIRCUIT_OPEN"),
        ("p#1", "UNSPECIFIED"),
        ("p#1", "DEVICE_OUT_OF_MEMORY"),
        ("p#1", "BACKOFF"),
        ("p#2", "UNSPECIFIED"),
        ("p#2", "BACKOFF"),
        ("p#3", "UNSPECIFIED"),
    ):
        _report(harness, replica_id, reason)

    assert harness.total("engine_restarts_total") == 2
    assert harness.total("engine_restarts_total", reason="device_out_of_memory") == 1
    assert harness.total("engine_restarts_total", reason="unknown", pool_id="p") == 1


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


def test_a_pool_tells_its_host_and_what_it_serves() -> None:
    """By it, gauges that name a pool can be shown by host."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))

    assert harness.total("pool_info", pool_id="p", host_id="h", engine="mock") == 1
    assert harness.total("pool_info") == 2
