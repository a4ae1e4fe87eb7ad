"""The metrics of jobs and pools: requirements §M. ORCH-3028."""

from typing import Final

from orchestrator_core.telemetry.metric_row import MetricRow, counter, gauge, histogram

_REPLICA = ("engine", "engine_version", "pool_id", "replica_id")
_LATENCY = ("engine", "engine_version", "pool_id", "priority")
_WAIT_MS = (1, 5, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
_FIRST_MS = (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
_DECODE_MS = (250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000)
_ERROR_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)

ENQUEUED: Final = counter(
    "tasks_enqueued_total", (*_REPLICA, "priority"), "Jobs accepted; those found at start included."
)
STARTED: Final = counter(
    "tasks_started_total", (*_REPLICA, "priority"), "Jobs whose first attempt an engine took up."
)
CANCELED: Final = counter(
    "tasks_canceled_total", (*_REPLICA, "reason"), "Jobs cancelled: by a client, or by disconnect."
)
REJECTED: Final = counter(
    "tasks_rejected_total", ("engine", "reason"), "Requests that were not accepted."
)
LIVE: Final = gauge(
    "tasks_live", ("state",), "Jobs that have not ended: queued, dispatched or running."
)
FINISHED: Final = counter(
    "tasks_finished_total",
    ("engine", "pool_id", "outcome"),
    "Jobs that ended, by terminal state; retracted: the journal refused the accept.",
)
BACKPRESSURE: Final = counter(
    "admission_backpressure_events_total",
    ("engine", "policy"),
    "Requests refused and jobs dropped at admission, by the rule that did it.",
)
TOKENS_IN: Final = counter("tokens_in_total", _REPLICA, "Prompt tokens, as engines count them.")
TOKENS_OUT: Final = counter("tokens_out_total", _REPLICA, "Tokens generated for ended jobs.")
FAILOVERS: Final = counter(
    "failovers_total",
    ("engine", "pool_id", "mode"),
    "Attempts lost and tried again: restart (nothing was delivered), verified_replay or continue.",
)
ORCHD_ENQUEUED: Final = counter(
    "orchd_admission_enqueued_total", ("pool_id", "outcome"), "Decided enqueues."
)
ORCHD_REJECTED: Final = counter(
    "orchd_admission_rejected_total", ("pool_id", "reason"), "Rejected enqueues, by kind."
)
ADMISSION_LATENCY: Final = histogram(
    "admission_latency_ms",
    ("engine", "priority"),
    "From receipt of a request to its durable accept.",
    (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
)
FIRST_TOKEN: Final = histogram(
    "latency_first_token_ms", _LATENCY, "From accept to the first output.", _FIRST_MS
)
DECODE: Final = histogram(
    "latency_decode_ms", _LATENCY, "From the first output to the end of finished jobs.", _DECODE_MS
)
QUEUE_WAIT: Final = histogram(
    "orchd_queue_wait_time_ms", ("pool_id",), "Each wait in the queue until a placement.", _WAIT_MS
)
PREDICTION_ERROR: Final = histogram(
    "prediction_error_ms",
    ("engine", "kind", "direction"),
    "Distance of the predicted start or end, told at accept, from the real one (early or late).",
    _ERROR_MS,
)
SNAPSHOT_AGE: Final = histogram(
    "snapshot_age_ms", ("pool_id",), "Age of the winner's snapshot at each placement.", _ERROR_MS
)
ON_TIME: Final = counter(
    "deadline_outcomes_total",
    ("told", "met"),
    "Ended jobs with a deadline: met or not, by the tenth in which the chance told at accept lay.",
)
ENGINE_RESTARTS: Final = counter(
    "engine_restarts_total",
    ("engine", "pool_id", "reason"),
    "New incarnations of a pool's engine, by why its host gave the one before up, if it said so.",
)
QUEUE_DEPTH: Final = gauge(
    "queue_depth", ("engine", "engine_version", "pool_id", "priority"), "Jobs that wait."
)
ORCHD_DEPTH: Final = gauge("orchd_admission_queue_depth", ("pool_id",), "Jobs that wait.")
POOL_STATE: Final = gauge(
    "pool_state", ("pool_id", "state"), "1 for the present state of a pool, 0 for the others."
)
POOL_INFO: Final = gauge(
    "pool_info",
    ("pool_id", "host_id", "engine", "model_id"),
    "1; where a pool runs and what it serves.",
)
POOL_SLOTS: Final = gauge("pool_slots", ("pool_id", "state"), "Slots, free or busy.")
POOL_SPEED: Final = gauge(
    "pool_tokens_per_s",
    ("pool_id",),
    "Believed decode rate of a single stream, at present clocks.",
    highest=True,
)
KV_USAGE: Final = gauge(
    "kv_cache_usage_ratio", _REPLICA, "Share of the key-value cache in use, 0 to 1.", highest=True
)
GPU_UTILIZATION: Final = gauge(
    "gpu_utilization",
    (*_REPLICA, "device"),
    "Share of time a device was busy, 0 to 1.",
    highest=True,
)
VRAM_USED: Final = gauge(
    "vram_used_bytes", (*_REPLICA, "device"), "Device memory in use by anybody."
)

JOB_ROWS: Final[tuple[MetricRow, ...]] = (
    ENQUEUED,
    STARTED,
    CANCELED,
    REJECTED,
    FINISHED,
    LIVE,
    BACKPRESSURE,
    QUEUE_DEPTH,
    ADMISSION_LATENCY,
    FIRST_TOKEN,
    DECODE,
    TOKENS_IN,
    TOKENS_OUT,
    POOL_STATE,
    POOL_INFO,
    POOL_SLOTS,
    POOL_SPEED,
    KV_USAGE,
    GPU_UTILIZATION,
    VRAM_USED,
    ORCHD_DEPTH,
    ORCHD_ENQUEUED,
    ORCHD_REJECTED,
    QUEUE_WAIT,
    PREDICTION_ERROR,
    SNAPSHOT_AGE,
    ON_TIME,
    FAILOVERS,
    ENGINE_RESTARTS,
)
