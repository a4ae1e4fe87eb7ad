"""The metrics contract as data, and the two kinds of instruments behind it. ORCH-3028.

`ci/metrics.lint.json` holds the same contract for the linter; a test compares the two. Names carry
their unit, so no OpenTelemetry unit is set: the Prometheus exporter would append it a second time.
"""

import contextlib
import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

OTHER: Final = "other"
# A histogram's observations that wait for one another: their handing over stops the event loop for
# less than a millisecond.
WAITING_MAX: Final = 64


class Kind(enum.Enum):
    """What a metric is, in the words of the Prometheus text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of the contract. `buckets` are upper bounds, in the unit of the name."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[int, ...] = ()


# Distinct values of a label within one metric, over the life of the process; what comes later is
# `other`.
BUDGETS: Final[Mapping[str, int]] = {
    "engine": 8,
    "engine_version": 64,
    "pool_id": 256,
    "replica_id": 1024,
    "priority": 8,
    "reason": 16,
    "state": 8,
    "model_id": 1024,
    "device": 1024,
    "outcome": 8,
    "policy": 24,
    "mode": 8,
    "kind": 8,
    "direction": 8,
}

_REPLICA = ("engine", "engine_version", "pool_id", "replica_id")
_LATENCY = ("engine", "engine_version", "pool_id", "priority")
_WAIT_MS = (1, 5, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
_FIRST_MS = (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
_DECODE_MS = (250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000)
_ERROR_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)


def _counter(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.GAUGE, labels, text)


def _histogram(
    name: str, labels: tuple[str, ...], text: str, buckets: tuple[int, ...]
) -> MetricRow:
    return MetricRow(name, Kind.HISTOGRAM, labels, text, buckets)


ENQUEUED: Final = _counter(
    "tasks_enqueued_total", (*_REPLICA, "priority"), "Jobs accepted; those found at start included."
)
STARTED: Final = _counter(
    "tasks_started_total", (*_REPLICA, "priority"), "Jobs whose first attempt an engine took up."
)
CANCELED: Final = _counter(
    "tasks_canceled_total", (*_REPLICA, "reason"), "Jobs cancelled: by a client, or by disconnect."
)
REJECTED: Final = _counter(
    "tasks_rejected_total", ("engine", "reason"), "Requests that were not accepted."
)
FINISHED: Final = _counter(
    "tasks_finished_total",
    ("engine", "pool_id", "outcome"),
    "Jobs that ended, by terminal state; retracted: the journal refused the accept.",
)
BACKPRESSURE: Final = _counter(
    "admission_backpressure_events_total",
    ("engine", "policy"),
    "Requests refused and jobs dropped at admission, by the rule that did it.",
)
TOKENS_IN: Final = _counter("tokens_in_total", _REPLICA, "Prompt tokens, as engines count them.")
TOKENS_OUT: Final = _counter("tokens_out_total", _REPLICA, "Tokens generated for ended jobs.")
FAILOVERS: Final = _counter(
    "failovers_total",
    ("engine", "pool_id", "mode"),
    "Attempts lost and tried again: restart (nothing was delivered), verified_replay or continue.",
)
ORCHD_ENQUEUED: Final = _counter(
    "orchd_admission_enqueued_total", ("pool_id", "outcome"), "Decided enqueues."
)
ORCHD_REJECTED: Final = _counter(
    "orchd_admission_rejected_total", ("pool_id", "reason"), "Rejected enqueues, by kind."
)
ADMISSION_LATENCY: Final = _histogram(
    "admission_latency_ms",
    ("engine", "priority"),
    "From receipt of a request to its durable accept.",
    (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
)
FIRST_TOKEN: Final = _histogram(
    "latency_first_token_ms", _LATENCY, "From accept to the first output.", _FIRST_MS
)
DECODE: Final = _histogram(
    "latency_decode_ms", _LATENCY, "From the first output to the end of finished jobs.", _DECODE_MS
)
QUEUE_WAIT: Final = _histogram(
    "orchd_queue_wait_time_ms", ("pool_id",), "Each wait in the queue until a placement.", _WAIT_MS
)
PREDICTION_ERROR: Final = _histogram(
    "prediction_error_ms",
    ("engine", "kind", "direction"),
    "Distance of the predicted start or end, told at accept, from the real one (early or late).",
    _ERROR_MS,
)
SNAPSHOT_AGE: Final = _histogram(
    "snapshot_age_ms", ("pool_id",), "Age of the winner's snapshot at each placement.", _ERROR_MS
)
QUEUE_DEPTH: Final = _gauge(
    "queue_depth", ("engine", "engine_version", "pool_id", "priority"), "Jobs that wait."
)
ORCHD_DEPTH: Final = _gauge("orchd_admission_queue_depth", ("pool_id",), "Jobs that wait.")
POOL_STATE: Final = _gauge(
    "pool_state", ("pool_id", "state"), "1 for the present state of a pool, 0 for the others."
)
KV_USAGE: Final = _gauge(
    "kv_cache_usage_ratio", _REPLICA, "Share of the key-value cache in use, 0 to 1."
)
GPU_UTILIZATION: Final = _gauge(
    "gpu_utilization", (*_REPLICA, "device"), "Share of time a device was busy, 0 to 1."
)
VRAM_USED: Final = _gauge(
    "vram_used_bytes", (*_REPLICA, "device"), "Device memory in use by anybody."
)

METRICS: Final = (
    ENQUEUED,
    STARTED,
    CANCELED,
    REJECTED,
    FINISHED,
    BACKPRESSURE,
    QUEUE_DEPTH,
    ADMISSION_LATENCY,
    FIRST_TOKEN,
    DECODE,
    TOKENS_IN,
    TOKENS_OUT,
    POOL_STATE,
    KV_USAGE,
    GPU_UTILIZATION,
    VRAM_USED,
    ORCHD_DEPTH,
    ORCHD_ENQUEUED,
    ORCHD_REJECTED,
    QUEUE_WAIT,
    PREDICTION_ERROR,
    SNAPSHOT_AGE,
    FAILOVERS,
)


class LabelBudget:
    """Lets a bounded number of values of each label through; later ones become `other`.

    Each metric has its own: the reasons of one do not use up the room of another.
    """

    def __init__(self, limits: Mapping[str, int] = BUDGETS) -> None:
        self._limits = limits
        self._seen: dict[str, set[str]] = {label: set() for label in limits}

    def admit(self, label: str, value: str) -> str:
        """The value itself while the budget lasts, else `other`."""
        seen = self._seen[label]
        if value in seen:
            return value
        # One place is kept for `other` itself, and the empty value costs none.
        if value and len(seen) >= self._limits[label] - 1:
            return OTHER
        if value:
            seen.add(value)
        return value

    def admit_all(self, labels: tuple[str, ...], values: tuple[str, ...]) -> tuple[str, ...]:
        """The values of several labels, each within its budget."""
        return tuple(map(self.admit, labels, values))


class Counter:
    """Counts in a plain table that exports read: an increment costs no OpenTelemetry call.

    Mutable on purpose: this is on the path of every job. Exports read from other threads; each
    calls `before_export` first.
    """

    def __init__(
        self, meter: Meter, row: MetricRow, before_export: Callable[[], None] = lambda: None
    ) -> None:
        assert row.kind is Kind.COUNTER
        self._labels, self._budget = row.labels, LabelBudget()
        self._values: dict[tuple[str, ...], int] = {}
        self._before_export = before_export
        meter.create_observable_counter(row.name, [self._observe], description=row.help)

    def add(self, amount: int, *values: str) -> None:
        """Adds to the series with these label values, in the order of the contract."""
        if values in self._values:
            self._values[values] += amount
            return
        key = self._budget.admit_all(self._labels, values)
        self._values[key] = self._values.get(key, 0) + amount

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        self._before_export()
        # copy() is one step of the interpreter; iterating the live table from here would not be.
        for key, value in self._values.copy().items():
            yield Observation(value, dict(zip(self._labels, key, strict=True)))


class Histogram:
    """Distribution with the buckets of the contract.

    OpenTelemetry's own takes ten microseconds for an observation, several times that between other
    work, so it gets many of them in a row: `WAITING_MAX`, or by `settle` all that wait.
    """

    def __init__(self, meter: Meter, row: MetricRow) -> None:
        assert row.kind is Kind.HISTOGRAM
        self._labels, self._budget = row.labels, LabelBudget()
        self._attributes: dict[tuple[str, ...], dict[str, str]] = {}
        self._waiting: deque[tuple[float, dict[str, str]]] = deque()
        self._instrument = meter.create_histogram(
            row.name,
            description=row.help,
            explicit_bucket_boundaries_advisory=[float(bound) for bound in row.buckets],
        )

    def record(self, amount: float, *values: str) -> None:
        """Records one observation with these label values, in the order of the contract."""
        attributes = self._attributes.get(values)
        if attributes is None:
            key = self._budget.admit_all(self._labels, values)
            attributes = dict(zip(self._labels, key, strict=True))
            attributes = self._attributes.setdefault(key, attributes)
        self._waiting.append((amount, attributes))
        if len(self._waiting) >= WAITING_MAX:
            self.settle()

    def settle(self) -> None:
        """Hands over what waits. For any thread."""
        with contextlib.suppress(IndexError):
            while True:
                self._instrument.record(*self._waiting.popleft())


class Gauge:
    """Shows what was sampled last. Series beyond the budget are folded into one."""

    def __init__(self, meter: Meter, row: MetricRow) -> None:
        assert row.kind is Kind.GAUGE
        self._labels, self._budget = row.labels, LabelBudget()
        self._values: Mapping[tuple[str, ...], float] = {}
        # Ratios of several pools have no sum; the highest is the one to look at.
        self._adds = row not in (KV_USAGE, GPU_UTILIZATION)
        meter.create_observable_gauge(row.name, [self._observe], description=row.help)

    def replace(self, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Takes new values over, all at once."""
        folded: dict[tuple[str, ...], float] = {}
        for raw, value in values:
            key = self._budget.admit_all(self._labels, raw)
            if key not in folded:
                folded[key] = value
            elif self._adds:
                folded[key] += value
            else:
                folded[key] = max(folded[key], value)
        self._values = folded

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for key, value in self._values.items():
            yield Observation(value, dict(zip(self._labels, key, strict=True)))


def reference() -> str:
    """The table of metrics for docs/metrics.md, as Markdown."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for row in METRICS:
        labels = ", ".join(row.labels)
        lines.append(f"| `{row.name}` | {row.kind.value} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
