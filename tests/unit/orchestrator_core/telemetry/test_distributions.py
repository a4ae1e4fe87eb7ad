"""Histograms say what OpenTelemetry's own would say of the same observations."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from orchestrator_core.telemetry import job_rows, service_rows
from orchestrator_core.telemetry.instruments import Board, Gauge, Histogram

ROW = job_rows.ADMISSION_LATENCY
OWN = "own"
_amounts = st.one_of(
    st.sampled_from([float(bound) for bound in ROW.buckets]), st.integers(0, 4_000).map(float)
)
_observations = st.lists(
    st.tuples(_amounts, st.sampled_from(["a", "b"]), st.sampled_from(["batch", "interactive"])),
    max_size=20,
)


@pytest.mark.parametrize("temporality", list(AggregationTemporality)[1:])
@given(exports=st.lists(_observations, min_size=1, max_size=4))
def test_a_histogram_is_that_of_the_sdk(
    temporality: AggregationTemporality, exports: list[list[tuple[float, str, str]]]
) -> None:
    """Export for export, whether it shows all observations or those since the last."""
    reader = InMemoryMetricReader(preferred_temporality={sdk.Histogram: temporality})
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    board = Board(meter)
    board.distributions.join(reader)
    Gauge(board, service_rows.CAPACITY).set(1)
    ours = Histogram(board, ROW)
    bounds = [float(bound) for bound in ROW.buckets]
    theirs = meter.create_histogram(OWN, explicit_bucket_boundaries_advisory=bounds)

    for observations in exports:
        for amount, engine, priority in observations:
            ours.record(amount, engine, priority)
            theirs.record(amount, {"engine": engine, "priority": priority})
        board.freeze()
        data = reader.get_metrics_data()
        metrics = {it.name: it for it in data.resource_metrics[0].scope_metrics[0].metrics}  # type: ignore[union-attr]

        assert _points(metrics, ROW.name, temporality) == _points(metrics, OWN, temporality)


def _points(metrics: dict[str, Any], name: str, temporality: AggregationTemporality) -> set[Any]:
    """What a metric says, without instants; extremes only of all observations."""
    if name not in metrics:
        return set()
    data = metrics[name].data
    assert data.aggregation_temporality is temporality
    extremes = temporality is AggregationTemporality.CUMULATIVE
    return {
        (
            frozenset(point.attributes.items()),
            point.count,
            point.sum,
            tuple(point.bucket_counts),
            tuple(point.explicit_bounds),
            (point.min, point.max) if extremes else None,
        )
        for point in data.data_points
    }
