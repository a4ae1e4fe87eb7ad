"""What one metric of the contract is, and how many values its labels may have.

Names carry their unit, so no OpenTelemetry unit is set: the Prometheus exporter would append it a
second time.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Kind(enum.Enum):
    """What a metric is, in the words of the Prometheus text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of the contract. `buckets` are upper bounds, in the unit of the name.

    Values of a gauge that meet in one series, as their labels are beyond the budget, are added up;
    where they have no sum, the `highest` is shown.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[int, ...] = ()
    highest: bool = False


# Distinct values of a label within one metric, over the life of the process; what comes later is
# `other`.
BUDGETS: Final[Mapping[str, int]] = {
    "engine": 8,
    "engine_version": 64,
    "pool_id": 256,
    "replica_id": 1024,
    "priority": 8,
    "reason": 16,
    "result": 4,
    "state": 8,
    "model_id": 1024,
    "device": 1024,
    "outcome": 8,
    "policy": 24,
    "mode": 8,
    "kind": 8,
    "direction": 8,
    "host_id": 256,
    "method": 64,
    "code": 24,
    "file": 4,
    "told": 12,
    "met": 4,
    "version": 4,
    "core": 4,
    "name": 64,
    "driver_version": 64,
}


def counter(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    """What only grows, from 0 at the start of the process."""
    return MetricRow(name, Kind.COUNTER, labels, text)


def gauge(name: str, labels: tuple[str, ...], text: str, *, highest: bool = False) -> MetricRow:
    """What is so at present."""
    return MetricRow(name, Kind.GAUGE, labels, text, highest=highest)


def histogram(name: str, labels: tuple[str, ...], text: str, buckets: tuple[int, ...]) -> MetricRow:
    """A distribution."""
    return MetricRow(name, Kind.HISTOGRAM, labels, text, buckets)
