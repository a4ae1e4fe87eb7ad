"""What users feel, and whether what they are told is true."""

from typing import Final

from ci.dashboards.board import Board, Kind, Panel, Query, Row
from ci.dashboards.queries import p95, quantiles, rate

LATENCY: Final = Board(
    "latency",
    "llama-orch / Latency",
    "What does a user feel, and where does the time go?",
    (
        Row(
            "What a user feels",
            (
                Panel(
                    "First token",
                    "From accept to the first output, so the wait is in it.",
                    quantiles("latency_first_token_ms"),
                    unit="ms",
                    width=12,
                ),
                Panel(
                    "First token, p95 by class",
                    "From accept to the first output.",
                    (p95("latency_first_token_ms", "priority"),),
                    unit="ms",
                    width=12,
                ),
                Panel(
                    "Decode",
                    "From the first output to the end of finished jobs.",
                    quantiles("latency_decode_ms"),
                    unit="ms",
                    width=12,
                ),
                Panel(
                    "First token at the engine, p95 by pool",
                    "From the start of an attempt at the host: without the wait.",
                    (p95("poold_first_token_ms", "pool_id"),),
                    unit="ms",
                    width=12,
                ),
            ),
        ),
        Row(
            "Inside orchestratord",
            (
                Panel(
                    "Admission",
                    "From receipt of a request to its durable accept.",
                    quantiles("admission_latency_ms", where=""),
                    unit="ms",
                ),
                Panel(
                    "Commit to the journal",
                    "One batch. A disk that is slow shows here first.",
                    quantiles("orchd_commit_time_ms", where=""),
                    unit="ms",
                ),
                Panel(
                    "Event loop behind",
                    "How late the loop is. Above 50 ms the process has too much to do.",
                    quantiles("orchd_event_loop_lag_ms", where=""),
                    unit="ms",
                ),
                Panel(
                    "Records in a commit",
                    "More under load: that is how a slow disk is shared.",
                    quantiles("orchd_commit_records", where=""),
                ),
                Panel(
                    "CPU",
                    "Cores in use, by service.",
                    (
                        Query(
                            "sum by (job, instance) (rate(process_cpu_seconds_total"
                            "[$__rate_interval]))",
                            "{{job}} {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "Resident, by service; engines are processes of their own.",
                    (
                        Query(
                            "sum by (job, instance) (process_resident_memory_bytes)",
                            "{{job}} {{instance}}",
                        ),
                    ),
                    unit="bytes",
                ),
            ),
        ),
    ),
)


_BEFORE_END = "Distance of what was told at accept from what happened."
PREDICTION: Final = Board(
    "prediction",
    "llama-orch / Prediction quality",
    "Can what clients are told be relied on?",
    (
        Row(
            "Start and end",
            (
                Panel(
                    "Error of the start",
                    _BEFORE_END,
                    quantiles("prediction_error_ms", where='kind="start"'),
                    unit="ms",
                    width=12,
                ),
                Panel(
                    "Error of the end",
                    _BEFORE_END,
                    quantiles("prediction_error_ms", where='kind="end"'),
                    unit="ms",
                    width=12,
                ),
                Panel(
                    "Late or early",
                    "Share of jobs that started later than they were told. Half is fair.",
                    (
                        Query(
                            "sum by (kind) (rate(prediction_error_ms_count"
                            '{direction="late"}[$__rate_interval]))'
                            " / sum by (kind) (rate(prediction_error_ms_count[$__rate_interval]))",
                            "{{kind}} late",
                        ),
                    ),
                    unit="percentunit",
                    width=12,
                    highest=1.0,
                ),
                Panel(
                    "Age of the winner's snapshot",
                    "What was known of a pool when it was chosen. Old means a slow network.",
                    quantiles("snapshot_age_ms"),
                    unit="ms",
                    width=12,
                ),
            ),
        ),
        Row(
            "Deadlines",
            (
                Panel(
                    "Kept, by the chance that was told",
                    "Where jobs were told 80 %, 80 % should be kept: bars should rise as a stair.",
                    (
                        Query(
                            'sum by (told) (deadline_outcomes_total{met="yes"})'
                            " / (sum by (told) (deadline_outcomes_total) > 0)",
                            "told {{told}}",
                        ),
                    ),
                    Kind.BARS,
                    "percentunit",
                    12,
                    highest=1.0,
                ),
                Panel(
                    "Jobs with a deadline per second",
                    "By whether it was kept.",
                    (rate("deadline_outcomes_total", "met", ""),),
                    Kind.AREAS,
                    width=12,
                ),
            ),
        ),
    ),
)
