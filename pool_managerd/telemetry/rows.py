"""The metrics contract of pool-managerd as data; `ci/metrics.lint.json` holds the same. ORCH-3028.

Names carry their unit, so no OpenTelemetry unit is set: the Prometheus exporter would append it a
second time. What orchestratord shows too has another name here, so that sums over both services
count nothing twice.
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
    """One metric of the contract. `buckets` are upper bounds, in the unit of the name."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[int, ...] = ()


# Distinct values of a label within one metric, over the life of the process; what comes later is
# `other`. A configuration has at most 256 pools.
BUDGETS: Final[Mapping[str, int]] = {
    "pool_id": 257,
    "state": 8,
    "outcome": 24,
    "reason": 16,
    "device": 1024,
    "name": 64,
    "driver_version": 64,
    "kind": 8,
    "version": 4,
    "xid": 64,
}

_FIRST_MS = (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
_ATTEMPT_MS = (100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 900_000)
_START_MS = (100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 900_000)
_LAG_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_READ_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)


def _counter(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(f"poold_{name}", Kind.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(f"poold_{name}", Kind.GAUGE, labels, text)


def _histogram(
    name: str, labels: tuple[str, ...], text: str, buckets: tuple[int, ...]
) -> MetricRow:
    return MetricRow(f"poold_{name}", Kind.HISTOGRAM, labels, text, buckets)


BUILD: Final = _gauge("build_info", ("version",), "1.")
LOOP_LAG: Final = _histogram(
    "event_loop_lag_ms", (), "How late the event loop was, once a second.", _LAG_MS
)
POOL_STATE: Final = _gauge(
    "pool_state", ("pool_id", "state"), "1 for the present state of a pool, 0 for the others."
)
SLOTS: Final = _gauge("slots", ("pool_id", "state"), "Slots of the present engine, free or busy.")
STARTED: Final = _counter("attempts_started_total", ("pool_id",), "Attempts that got a slot.")
RUNNING: Final = _gauge("attempts_running", ("pool_id",), "Attempts that hold a slot.")
ENDED: Final = _counter(
    "attempts_ended_total", ("pool_id", "outcome"), "Attempts that gave their slot back."
)
REFUSED: Final = _counter(
    "attempts_refused_total", ("pool_id", "reason"), "Attempts that were not started."
)
FIRST_TOKEN: Final = _histogram(
    "first_token_ms", ("pool_id",), "From the start of an attempt to its first output.", _FIRST_MS
)
ATTEMPT_TIME: Final = _histogram(
    "attempt_duration_ms",
    ("pool_id",),
    "From the start of an attempt until its slot is free.",
    _ATTEMPT_MS,
)
TOKENS_IN: Final = _counter(
    "tokens_in_total", ("pool_id",), "Prompt tokens of ended attempts, as engines count them."
)
TOKENS_OUT: Final = _counter(
    "tokens_out_total", ("pool_id",), "Tokens generated, also of attempts that still run."
)
ENGINE_START: Final = _histogram(
    "engine_start_ms",
    ("pool_id", "outcome"),
    "Starting an engine until it was ready, or had failed.",
    _START_MS,
)
RESTARTS: Final = _counter(
    "engine_restarts_total",
    ("pool_id", "reason"),
    "New engines of a pool, by why the one before was given up.",
)
HELD_BYTES: Final = _gauge("held_bytes", (), "Output held until the orchestrator releases it.")
HELD_LIMIT: Final = _gauge("held_limit_bytes", (), "Beyond this the oldest output is evicted.")
HELD_ATTEMPTS: Final = _gauge("held_attempts", (), "Attempts whose output is held.")
LINK_UP: Final = _gauge("link_up", (), "1 while registered with the orchestrator, else 0.")
LINK_DIALS: Final = _counter(
    "link_dials_total", (), "Streams to the orchestrator that were opened."
)
CONFIG_RELOADS: Final = _counter(
    "config_reloads_total",
    ("outcome",),
    "The configuration was read again: applied, unchanged or refused.",
)
LINK_SESSIONS: Final = _counter(
    "link_registrations_total", (), "Streams on which the orchestrator took the registration."
)
FRAMES: Final = _counter("frames_total", (), "Frames sent to the orchestrator.")
UNACKED: Final = _gauge("unacked_bytes", (), "Output sent and not acknowledged yet.")
DEVICE_READ: Final = _histogram(
    "device_read_ms",
    ("kind",),
    "Reading all devices once: brief (memory, utilisation) or thorough.",
    _READ_MS,
)
DEVICE_INFO: Final = _gauge(
    "device_info", ("device", "name", "driver_version"), "1; what the device is."
)
DEVICE_HEALTH: Final = _gauge(
    "device_health", ("device", "state"), "1 for the present health of a device, 0 for the others."
)
MEMORY_TOTAL: Final = _gauge("device_memory_total_bytes", ("device",), "Memory of a device.")
MEMORY_USED: Final = _gauge(
    "device_memory_used_bytes", ("device",), "Device memory in use by anybody."
)
MEMORY_FREE: Final = _gauge("device_memory_free_bytes", ("device",), "Device memory that is free.")
BUSY: Final = _gauge("device_busy_ratio", ("device",), "Share of time a device was busy, 0 to 1.")
TEMPERATURE: Final = _gauge("device_temperature_celsius", ("device",), "Temperature of a device.")
POWER: Final = _gauge("device_power_watts", ("device",), "Power that a device draws.")
CLOCK: Final = _gauge("device_clock_hertz", ("device",), "Clock of the multiprocessors.")
CLOCK_MAX: Final = _gauge(
    "device_clock_max_hertz", ("device",), "Highest clock of the multiprocessors."
)
SLOWED: Final = _gauge(
    "device_slowed",
    ("device", "reason"),
    "1 while a device lowers its clocks for this reason, else 0.",
)
ECC: Final = _counter(
    "device_ecc_uncorrected_total",
    ("device",),
    "Uncorrected memory errors since the driver was loaded.",
)
XIDS: Final = _counter("device_xids_total", ("device", "xid"), "XID errors that were reported.")

METRICS: Final = (
    BUILD,
    LOOP_LAG,
    POOL_STATE,
    SLOTS,
    STARTED,
    RUNNING,
    ENDED,
    REFUSED,
    FIRST_TOKEN,
    ATTEMPT_TIME,
    TOKENS_IN,
    TOKENS_OUT,
    ENGINE_START,
    RESTARTS,
    HELD_BYTES,
    HELD_LIMIT,
    HELD_ATTEMPTS,
    LINK_UP,
    LINK_DIALS,
    CONFIG_RELOADS,
    LINK_SESSIONS,
    FRAMES,
    UNACKED,
    DEVICE_READ,
    DEVICE_INFO,
    DEVICE_HEALTH,
    MEMORY_TOTAL,
    MEMORY_USED,
    MEMORY_FREE,
    BUSY,
    TEMPERATURE,
    POWER,
    CLOCK,
    CLOCK_MAX,
    SLOWED,
    ECC,
    XIDS,
)


def reference() -> str:
    """The table of metrics for docs/metrics.md, as Markdown."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for row in METRICS:
        labels = ", ".join(row.labels)
        lines.append(f"| `{row.name}` | {row.kind.value} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
