"""Histograms for OpenTelemetry's readers, from plain tables.

The SDK has callbacks for counters and gauges and none for histograms, so what they hold is added to
what it collects for a reader.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

from orchestrator_core.telemetry.metric_row import MetricRow

_DELTA: Final = AggregationTemporality.DELTA
Points = dict[str, list[HistogramDataPoint]]


@dataclass(slots=True)
class Series:
    """All observations with the same label values; the last count is of what is above all bounds.

    Mutable on purpose: this is on the path of every job.
    """

    attributes: Mapping[str, str]
    counts: list[int]
    total: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf


class Distributions:
    """All histograms of one process. `freeze` belongs to the event loop, readers do not."""

    def __init__(self) -> None:
        self._began_ns = time.time_ns()
        self._sources: list[tuple[MetricRow, Sequence[float], Mapping[Any, Series]]] = []
        self._frozen: Points = {}

    def add(self, row: MetricRow, bounds: Sequence[float], series: Mapping[Any, Series]) -> None:
        """Adds a histogram with its upper bounds and the series that it fills."""
        self._sources.append((row, bounds, series))

    def freeze(self) -> None:
        """Shows exports that begin from now on the present counts. O(series)."""
        now_ns = time.time_ns()
        self._frozen = {
            row.name: [self._point(it, bounds, now_ns) for it in series.values()]
            for row, bounds, series in self._sources
        }

    def join(self, reader: MetricReader) -> None:
        """Adds the histograms to what `reader`, which a provider has already, collects."""
        # There is no public place to add metrics to. Whoever chooses temporality for OTLP is heard.
        sdk_reader: Any = reader
        temporality = next(
            value
            for kind, value in sdk_reader._instrument_class_temporality.items()  # noqa: SLF001
            if issubclass(kind, sdk.Histogram)
        )
        joined = _Joined(self, sdk_reader._collect, temporality)  # noqa: SLF001
        sdk_reader._set_collect_callback(joined.collect)  # noqa: SLF001

    def metrics(self, told: Points | None) -> tuple[list[Metric], Points]:
        """All that hold something, and what they say; of deltas, since `told`."""
        frozen, metrics = self._frozen, []
        temporality = AggregationTemporality.CUMULATIVE if told is None else _DELTA
        for row, _, _ in self._sources:
            points = frozen.get(row.name, [])
            if told is not None:
                points = _since(points, told.get(row.name, []))
            if points:
                data = HistogramData(points, temporality)
                metrics.append(Metric(row.name, row.help, "", data))
        return metrics, frozen

    def _point(self, it: Series, bounds: Sequence[float], now_ns: int) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes=it.attributes,
            start_time_unix_nano=self._began_ns,
            time_unix_nano=now_ns,
            count=sum(it.counts),
            sum=it.total,
            bucket_counts=tuple(it.counts),
            explicit_bounds=bounds,
            min=it.lowest,
            max=it.highest,
        )


class _Joined:
    """What one reader collects."""

    def __init__(
        self,
        distributions: Distributions,
        collect: Callable[..., MetricsData | None],
        temporality: AggregationTemporality,
    ) -> None:
        self._distributions, self._collect = distributions, collect
        self._told: Points | None = {} if temporality is _DELTA else None

    def collect(self, reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        """What the SDK has, and the histograms."""
        data: MetricsData | None = self._collect(reader, timeout_millis=timeout_millis)
        if data is None:
            return None
        metrics, told = self._distributions.metrics(self._told)
        if self._told is not None:
            self._told = told
        ours = data.resource_metrics[0]
        scope = ours.scope_metrics[0]
        scope = replace(scope, metrics=[*scope.metrics, *metrics])
        ours = replace(ours, scope_metrics=[scope, *ours.scope_metrics[1:]])
        return replace(data, resource_metrics=[ours, *data.resource_metrics[1:]])


def _since(
    points: list[HistogramDataPoint], told: list[HistogramDataPoint]
) -> list[HistogramDataPoint]:
    """What came after `told`, whose series come first, without extremes: those are not known."""
    unknown: Any = None
    fresh = []
    for number, point in enumerate(points):
        before = told[number] if number < len(told) else None
        if before is None:
            fresh.append(point)
        elif point.count > before.count:
            counts = zip(point.bucket_counts, before.bucket_counts, strict=True)
            fresh.append(
                replace(
                    point,
                    start_time_unix_nano=before.time_unix_nano,
                    count=point.count - before.count,
                    sum=point.sum - before.sum,
                    bucket_counts=tuple(now - then for now, then in counts),
                    min=unknown,
                    max=unknown,
                )
            )
    return fresh
