"""Spans, metrics and log lines of pool-managerd. Never prompts, tokens or secrets. Design §8."""

from pool_managerd.telemetry.logs import configure_logs, log, set_log_level
from pool_managerd.telemetry.metrics import Metrics
from pool_managerd.telemetry.names import (
    SPAN_ATTEMPT,
    SPAN_CANCEL,
    SPAN_CONFIG_RELOAD,
    SPAN_DRAIN,
    SPAN_GENERATE,
    SPAN_OUTBOUND,
    SPAN_REFUSE,
    SPAN_RELOAD,
    SPAN_START,
    SPAN_STOP,
)
from pool_managerd.telemetry.spans import Telemetry

__all__ = [
    "SPAN_ATTEMPT",
    "SPAN_CANCEL",
    "SPAN_CONFIG_RELOAD",
    "SPAN_DRAIN",
    "SPAN_GENERATE",
    "SPAN_OUTBOUND",
    "SPAN_REFUSE",
    "SPAN_RELOAD",
    "SPAN_START",
    "SPAN_STOP",
    "Metrics",
    "Telemetry",
    "configure_logs",
    "log",
    "set_log_level",
]
