"""What runs, what waits, who is turned away."""

from typing import Final

from ci.dashboards.board import Board, Kind, Panel, Query, Row
from ci.dashboards.queries import POOL, of_ready_pools, quantiles, rate

BUSY_SLOTS: Final = 'pool_slots{state="busy"}'
FLEET: Final = Board(
    "fleet",
    "llama-orch / Fleet",
    "Is it healthy, what does it do, and which pool does it?",
    (
        Row(
            "Now",
            (
                Panel(
                    "Pools ready",
                    "Pools that take jobs.",
                    (Query('sum(pool_state{state="ready"})'),),
                    Kind.NUMBER,
                    width=4,
                ),
                Panel(
                    "Pools not ready",
                    "Starting, draining, unready, or their host is away.",
                    (Query('sum(pool_state{state!="ready"})'),),
                    Kind.NUMBER,
                    width=4,
                    warn=1,
                ),
                Panel(
                    "Hosts connected",
                    "Hosts whose stream to orchestratord is open.",
                    (Query("sum(orchd_hosts_connected)"),),
                    Kind.NUMBER,
                    width=4,
                ),
                Panel(
                    "Jobs running",
                    "Jobs that an engine works on.",
                    (Query('sum(tasks_live{state="running"})'),),
                    Kind.NUMBER,
                    width=4,
                ),
                Panel(
                    "Jobs waiting",
                    "Jobs in the queue.",
                    (Query("sum(queue_depth)"),),
                    Kind.NUMBER,
                    width=4,
                ),
                Panel(
                    "Busy",
                    "Share of the slots of pools that are ready.",
                    (
                        Query(
                            f"sum({of_ready_pools(BUSY_SLOTS)})"
                            f" / sum({of_ready_pools('pool_slots')})"
                        ),
                    ),
                    Kind.NUMBER,
                    "percentunit",
                    4,
                    warn=0.9,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Tokens generated per second",
                    "Tokens of ended jobs, by pool. A long job shows when it ends.",
                    (rate("tokens_out_total", "pool_id"),),
                    Kind.AREAS,
                    width=12,
                ),
                Panel(
                    "Jobs ended per second",
                    "By how they ended.",
                    (rate("tasks_finished_total", "outcome"),),
                    Kind.AREAS,
                    width=12,
                ),
            ),
        ),
        Row(
            "Pools",
            (
                Panel(
                    "State",
                    "What each pool was when.",
                    (Query(f"pool_state{{{POOL}}} == 1", "{{pool_id}} {{state}}"),),
                    Kind.STATES,
                    width=12,
                ),
                Panel(
                    "Slots busy",
                    "By pool.",
                    (
                        Query(
                            f'sum by (pool_id) (pool_slots{{{POOL}, state="busy"}})', "{{pool_id}}"
                        ),
                    ),
                    Kind.AREAS,
                    width=12,
                ),
                Panel(
                    "Believed speed",
                    "Tokens per second of a single stream, at present clocks.",
                    (Query(f"pool_tokens_per_s{{{POOL}}}", "{{pool_id}}"),),
                    width=12,
                ),
                Panel(
                    "Key-value cache in use",
                    "Where the engine tells it.",
                    (Query(f"max by (pool_id) (kv_cache_usage_ratio{{{POOL}}})", "{{pool_id}}"),),
                    unit="percentunit",
                    width=12,
                    highest=1.0,
                ),
            ),
        ),
    ),
)


QUEUE: Final = Board(
    "queue",
    "llama-orch / Queue and admission",
    "Who waits, for how long, and who is turned away?",
    (
        Row(
            "Queue",
            (
                Panel(
                    "Depth by class",
                    "Jobs that wait. The line is what may wait.",
                    (
                        Query("sum by (priority) (queue_depth)", "{{priority}}"),
                        Query("max(orchd_queue_capacity)", "capacity"),
                    ),
                    width=12,
                ),
                Panel(
                    "Wait until a pool was chosen",
                    "Each wait, also after a retry.",
                    quantiles("orchd_queue_wait_time_ms"),
                    unit="ms",
                    width=12,
                ),
            ),
        ),
        Row(
            "Admission",
            (
                Panel(
                    "Accepted and rejected per second",
                    "Decided enqueues.",
                    (rate("orchd_admission_enqueued_total", "outcome", ""),),
                    Kind.AREAS,
                    width=12,
                ),
                Panel(
                    "Rejections by reason",
                    "The exact reason; docs/errors.md lists them.",
                    (rate("tasks_rejected_total", "reason", ""),),
                    Kind.AREAS,
                    width=12,
                ),
                Panel(
                    "Backpressure by rule",
                    "Requests refused and jobs dropped, by the rule of docs/admission.md.",
                    (rate("admission_backpressure_events_total", "policy", ""),),
                    Kind.AREAS,
                    width=12,
                ),
                Panel(
                    "Cancelled per second",
                    "By a client, or because nobody listened any more.",
                    (rate("tasks_canceled_total", "reason", ""),),
                    Kind.AREAS,
                    width=12,
                ),
            ),
        ),
        Row(
            "Clients",
            (
                Panel(
                    "Streams open",
                    "By method.",
                    (Query("sum by (method) (orchd_streams_open)", "{{method}}"),),
                ),
                Panel(
                    "Calls per second",
                    "By method.",
                    (rate("orchd_rpcs_total", "method", ""),),
                ),
                Panel(
                    "Calls that failed per second",
                    "By status code.",
                    (rate("orchd_rpcs_total", "code", 'code!="OK"'),),
                ),
            ),
        ),
    ),
)
