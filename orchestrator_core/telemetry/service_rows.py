"""The metrics of orchestratord itself, of its hosts and of their devices."""

from typing import Final

from orchestrator_core.telemetry.metric_row import MetricRow, counter, gauge, histogram

_DEVICE = ("host_id", "device")
_LAG_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_COMMIT_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_BATCH = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

BUILD: Final = gauge(
    "orchd_build_info", ("version", "core"), "1; the core is interpreted or compiled."
)
CAPACITY: Final = gauge("orchd_queue_capacity", (), "Jobs that may wait.")
DRAINING: Final = gauge("orchd_draining", (), "1 once nothing is accepted any more.")
LOOP_LAG: Final = histogram(
    "orchd_event_loop_lag_ms", (), "How late the event loop was, once a second.", _LAG_MS
)
COMMIT_TIME: Final = histogram(
    "orchd_commit_time_ms",
    ("outcome",),
    "Writing a batch to the journal: written, failed, or unknown until it is read back.",
    _COMMIT_MS,
)
COMMIT_RECORDS: Final = histogram(
    "orchd_commit_records", (), "Records in one batch to the journal.", _BATCH
)
JOURNAL_BYTES: Final = gauge(
    "orchd_journal_bytes", ("file",), "Size of the journal on disk: main file and write-ahead log."
)
JOURNAL_WRITABLE: Final = gauge(
    "orchd_journal_writable", (), "0 from a failed write until the next succeeds, else 1."
)
DISK_FREE: Final = gauge("orchd_disk_free_bytes", (), "Free space where the journal lies.")
RECORDER_LOST: Final = counter(
    "orchd_recorder_lost_steps_total", (), "Steps that the flight recorder left out."
)
RECORDER_WAITING: Final = gauge(
    "orchd_recorder_waiting_steps", (), "Steps that wait for the flight recorder's thread."
)
STREAMS: Final = gauge("orchd_streams_open", ("method",), "Streams that are open.")
RPCS: Final = counter("orchd_rpcs_total", ("method", "code"), "Calls that ended, by status code.")
CONFIG_RELOADS: Final = counter(
    "orchd_config_reloads_total",
    ("outcome",),
    "The configuration was read again: applied, unchanged or refused.",
)
RELAY_BYTES: Final = gauge(
    "orchd_relay_held_bytes", (), "Output kept for readers who are behind or come back."
)
RELAY_LIMIT: Final = gauge(
    "orchd_relay_limit_bytes", (), "Beyond this the oldest output is evicted."
)
SESSIONS: Final = gauge("orchd_sessions", (), "Sessions that are kept.")
MODEL_STATE: Final = gauge(
    "model_state",
    ("model_id", "state"),
    "1 for the present state of a model of the catalog, 0 for the others; retiring: within its "
    "grace.",
)
CATALOG_VERIFICATIONS: Final = counter(
    "catalog_verifications_total",
    ("result", "reason", "engine"),
    "Comparisons of pools' digests with the catalog's, and checks of signatures.",
)
ARTIFACTS: Final = gauge("orchd_artifacts", (), "Artifacts that are kept.")
ARTIFACTS_MAX: Final = gauge("orchd_artifacts_max", (), "Artifacts that may be kept.")
ARTIFACT_BYTES: Final = gauge(
    "orchd_artifact_bytes", (), "Content that is stored or being put: what the quota counts."
)
ARTIFACT_QUOTA: Final = gauge(
    "orchd_artifact_quota_bytes", (), "Beyond this no artifact can be put."
)
ARTIFACT_REFUSALS: Final = counter(
    "orchd_artifact_refusals_total",
    ("reason",),
    "Calls about artifacts that were refused, by the bound that was reached, else by reason.",
)
ARTIFACT_MOVED: Final = counter(
    "orchd_artifact_moved_bytes_total",
    ("direction",),
    "Content that came from clients (in), went to them (out), or to hosts as input (host).",
)
ARTIFACT_DAMAGED: Final = counter(
    "orchd_artifact_damaged_total",
    (),
    "Readings that found other content than was put, or none.",
)
HOSTS: Final = gauge("orchd_hosts_connected", (), "Hosts whose Dispatch stream is open.")
HOST_UP: Final = counter(
    "orchd_host_registrations_total", ("host_id",), "Registrations; all but the first reconnect."
)
HOST_DOWN: Final = counter("orchd_host_losses_total", ("host_id",), "Dispatch streams that ended.")
GPU_INFO: Final = gauge(
    "gpu_info", (*_DEVICE, "name", "driver_version"), "1; what the device is.", highest=True
)
GPU_HEALTH: Final = gauge(
    "gpu_health", (*_DEVICE, "state"), "1 for the present health of a device, 0 for the others."
)
VRAM_TOTAL: Final = gauge("vram_total_bytes", _DEVICE, "Memory of a device.")
GPU_TEMPERATURE: Final = gauge(
    "gpu_temperature_celsius", _DEVICE, "Temperature of a device.", highest=True
)
GPU_POWER: Final = gauge("gpu_power_watts", _DEVICE, "Power that a device draws.")
GPU_CLOCK: Final = gauge("gpu_clock_hertz", _DEVICE, "Clock of the multiprocessors.", highest=True)
GPU_CLOCK_MAX: Final = gauge(
    "gpu_clock_max_hertz", _DEVICE, "Highest clock of the multiprocessors.", highest=True
)
GPU_SLOWED: Final = gauge(
    "gpu_slowed",
    (*_DEVICE, "reason"),
    "1 while a device lowers its clocks for this reason, else 0.",
    highest=True,
)
GPU_ECC: Final = counter(
    "gpu_ecc_uncorrected_total",
    _DEVICE,
    "Uncorrected memory errors since the driver was loaded.",
)
GPU_XID: Final = gauge(
    "gpu_last_xid", _DEVICE, "Number of the last XID error; absent before the first.", highest=True
)

SERVICE_ROWS: Final[tuple[MetricRow, ...]] = (
    BUILD,
    CAPACITY,
    DRAINING,
    LOOP_LAG,
    COMMIT_TIME,
    COMMIT_RECORDS,
    JOURNAL_BYTES,
    JOURNAL_WRITABLE,
    DISK_FREE,
    RECORDER_LOST,
    RECORDER_WAITING,
    STREAMS,
    RPCS,
    CONFIG_RELOADS,
    RELAY_BYTES,
    RELAY_LIMIT,
    SESSIONS,
    MODEL_STATE,
    CATALOG_VERIFICATIONS,
    ARTIFACTS,
    ARTIFACTS_MAX,
    ARTIFACT_BYTES,
    ARTIFACT_QUOTA,
    ARTIFACT_REFUSALS,
    ARTIFACT_MOVED,
    ARTIFACT_DAMAGED,
    HOSTS,
    HOST_UP,
    HOST_DOWN,
    GPU_INFO,
    GPU_HEALTH,
    VRAM_TOTAL,
    GPU_TEMPERATURE,
    GPU_POWER,
    GPU_CLOCK,
    GPU_CLOCK_MAX,
    GPU_SLOWED,
    GPU_ECC,
    GPU_XID,
)
