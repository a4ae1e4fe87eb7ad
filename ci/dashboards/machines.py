"""Cards, failures, and what was done about them."""

from typing import Final

from ci.dashboards.board import Board, Kind, Panel, Query, Row
from ci.dashboards.queries import DEVICE, each_device, of_host, p95, rate, some

GPUS: Final = Board(
    "gpus",
    "llama-orch / GPUs",
    "What do the cards do, and are they well? What a card does not report has no line.",
    (
        Row(
            "Load",
            (
                Panel(
                    "Busy",
                    "Share of time a device was busy.",
                    (Query(each_device(of_host("gpu_utilization")), DEVICE),),
                    unit="percentunit",
                    width=12,
                    highest=1.0,
                ),
                Panel(
                    "Memory in use",
                    "By anybody, as share of the device's memory.",
                    (
                        Query(
                            f"{each_device(of_host('vram_used_bytes'))}"
                            f" / {each_device('vram_total_bytes')}",
                            DEVICE,
                        ),
                    ),
                    unit="percentunit",
                    width=12,
                    highest=1.0,
                ),
                Panel(
                    "Power",
                    "Drawn by each device.",
                    (Query(each_device("gpu_power_watts"), DEVICE),),
                    unit="watt",
                ),
                Panel(
                    "Temperature",
                    "Of each device.",
                    (Query(each_device("gpu_temperature_celsius"), DEVICE),),
                    unit="celsius",
                    lowest=None,
                ),
                Panel(
                    "Clock",
                    "Of the multiprocessors, as share of the highest.",
                    (
                        Query(
                            f"{each_device('gpu_clock_hertz')}"
                            f" / {each_device('gpu_clock_max_hertz')}",
                            DEVICE,
                        ),
                    ),
                    unit="percentunit",
                    highest=1.0,
                ),
            ),
        ),
        Row(
            "Health",
            (
                Panel(
                    "Health",
                    "What each device was when.",
                    (Query("gpu_health == 1", f"{DEVICE} {{{{state}}}}"),),
                    Kind.STATES,
                    width=12,
                ),
                Panel(
                    "Slowed",
                    "Devices that protect themselves: heat or power.",
                    (
                        Query(
                            "max by (host_id, device, reason) (gpu_slowed)",
                            f"{DEVICE} {{{{reason}}}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Uncorrected memory errors",
                    "Since the driver was loaded.",
                    (Query(each_device("gpu_ecc_uncorrected_total"), DEVICE),),
                ),
                Panel(
                    "Last XID",
                    "Number of the last error that the driver told; NVIDIA lists what they mean.",
                    (Query(each_device("gpu_last_xid"), DEVICE),),
                    Kind.BARS,
                    lowest=None,
                ),
                Panel(
                    "Reading all devices, p95",
                    "How long the driver takes to answer; from pool-managerd's own endpoint.",
                    (p95("poold_device_read_ms", "kind", ""),),
                    unit="ms",
                ),
            ),
        ),
    ),
    pools=False,
)


RELIABILITY: Final = Board(
    "reliability",
    "llama-orch / Reliability",
    "What broke, what was done about it, and was anything lost?",
    (
        Row(
            "Accounts",
            (
                Panel(
                    "Jobs unaccounted for",
                    "Enqueued, less ended, less live; be it too few or too many, it is a bug.",
                    (
                        Query(
                            "abs(sum(tasks_enqueued_total) - (sum(tasks_finished_total)"
                            " or vector(0)) - sum(tasks_live))"
                        ),
                    ),
                    Kind.NUMBER,
                    width=6,
                    lowest=None,
                    bad=1,
                ),
                Panel(
                    "Journal writable",
                    "1 unless the last write failed.",
                    (Query("min(orchd_journal_writable)"),),
                    Kind.NUMBER,
                    width=6,
                ),
                Panel(
                    "Free on the journal's disk",
                    "A full disk refuses every new job.",
                    (Query("min(orchd_disk_free_bytes)"),),
                    Kind.NUMBER,
                    "bytes",
                    6,
                ),
                Panel(
                    "Steps that the flight recorder lost",
                    "These cannot be replayed or explained.",
                    (Query("sum(orchd_recorder_lost_steps_total)"),),
                    Kind.NUMBER,
                    width=6,
                    warn=1,
                ),
            ),
        ),
        Row(
            "Failures",
            (
                Panel(
                    "Failovers per second",
                    "Attempts lost and tried again, by what was done.",
                    (rate("failovers_total", "mode"),),
                    Kind.AREAS,
                ),
                Panel(
                    "Engine restarts per second",
                    "By why the engine before was given up.",
                    (some(rate("engine_restarts_total", "pool_id, reason")),),
                    Kind.AREAS,
                ),
                Panel(
                    "Jobs failed or expired per second",
                    "By pool; empty while none was chosen.",
                    (
                        rate(
                            "tasks_finished_total",
                            "pool_id, outcome",
                            'outcome=~"failed|expired"',
                        ),
                    ),
                    Kind.AREAS,
                ),
                Panel(
                    "Hosts lost per second",
                    "Streams of hosts that ended.",
                    (rate("orchd_host_losses_total", "host_id", ""),),
                    width=12,
                ),
                Panel(
                    "Attempts ended at hosts per second",
                    "By outcome; from pool-managerd's own endpoint.",
                    (rate("poold_attempts_ended_total", "outcome"),),
                    Kind.AREAS,
                    width=12,
                ),
            ),
        ),
        Row(
            "Room",
            (
                Panel(
                    "Output held by orchestratord",
                    "For readers who are behind; the line is where the oldest goes.",
                    (
                        Query("sum(orchd_relay_held_bytes)", "held"),
                        Query("sum(orchd_relay_limit_bytes)", "limit"),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Output held by hosts",
                    "Until its job has ended; the line is where the oldest goes.",
                    (
                        Query("sum by (instance) (poold_held_bytes)", "held {{instance}}"),
                        Query("sum by (instance) (poold_held_limit_bytes)", "limit {{instance}}"),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Artifacts",
                    "Content that is stored or being put; the line is where no more is taken.",
                    (
                        Query("sum(orchd_artifact_bytes)", "stored"),
                        Query("sum(orchd_artifact_quota_bytes)", "quota"),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Artifacts, bytes per second",
                    "From clients, to clients, and to hosts as input of jobs.",
                    (rate("orchd_artifact_moved_bytes_total", "direction", ""),),
                    unit="Bps",
                ),
                Panel(
                    "Artifacts refused or damaged per second",
                    "By the bound that was reached, else by reason; damaged content is read as an"
                    " error.",
                    (
                        some(rate("orchd_artifact_refusals_total", "reason", "")),
                        Query(
                            "sum(rate(orchd_artifact_damaged_total[$__rate_interval]))", "damaged"
                        ),
                    ),
                ),
                Panel(
                    "Journal on disk",
                    "Main file and write-ahead log.",
                    (Query("sum by (file) (orchd_journal_bytes)", "{{file}}"),),
                    Kind.AREAS,
                    "bytes",
                ),
            ),
        ),
    ),
)
