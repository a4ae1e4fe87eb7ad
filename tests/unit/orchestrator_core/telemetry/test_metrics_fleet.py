"""Metrics of pools and hosts, and labels that never grow without bound."""

import pytest

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.auth.roles import ALLOWED
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    HostLost,
    OutputProgressed,
)
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.telemetry.fleet import DeviceGauges, PoolGauges
from orchestrator_core.telemetry.instruments import OTHER, LabelBudget
from orchestrator_core.telemetry.metric_row import BUDGETS
from tests.unit.orchestrator_core.telemetry.harness import Harness, assert_adds_up, snapshot, spec


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
    assert_adds_up(harness)


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
    assert_adds_up(harness)


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


def test_a_pool_tells_its_host_and_what_it_serves() -> None:
    """By it, gauges that name a pool can be shown by host."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))

    assert harness.total("pool_info", pool_id="p", host_id="h", engine="mock") == 1
    assert harness.total("pool_info") == 2
