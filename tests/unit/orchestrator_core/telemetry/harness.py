"""A real core with telemetry around it, whose spans, metrics and lines can be read."""

import io
import json
from collections.abc import Sequence
from typing import Any

import structlog
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    EnqueueRequested,
    Event,
    HeldAttempt,
    HostRegistered,
    OutputProgressed,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.telemetry.fleet import NoFleet
from orchestrator_core.telemetry.line_sink import told_late
from orchestrator_core.telemetry.logs import Lines
from orchestrator_core.telemetry.metrics import Metrics
from orchestrator_core.telemetry.names import SPANS
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.telemetry.tracing import Span, Tracing

DIED = AttemptError(AttemptErrorKind.ENGINE_DIED, "the engine process ended")

START_MS = 1_700_000_000_000
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"

OUTCOMES = ("finished", "cancelled", "dropped", "expired", "failed", "retracted")

Labels = frozenset[tuple[str, str]]


def spec(job_id: str = "j", **fields: Any) -> JobSpec:
    """A job whose caller sent a trace context."""
    needs = fields.pop("needs", None) or Needs(model_id="m", engine=fields.pop("engine", "mock"))
    return JobSpec(
        **{
            "job_id": job_id,
            "needs": needs,
            "digest": job_id,
            "traceparent": TRACEPARENT,
            **fields,
        }
    )


def snapshot(pool_id: str = "p", **fields: Any) -> PoolSnapshot:
    """A ready pool of host h with one slot."""
    defaults: dict[str, Any] = {
        "replica_id": f"{pool_id}#1",
        "host_id": "h",
        "version": 7,
        "model_id": "m",
        "engine": "mock",
        "engine_version": "1.0",
    }
    return PoolSnapshot(pool_id=pool_id, **{**defaults, **fields})


class CountingTracing(Tracing):
    """Counts spans that were started and not ended."""

    open_spans = 0

    def start(self, *args: Any, **kwargs: Any) -> Span:
        self.open_spans += 1
        return super().start(*args, **kwargs)

    def end(self, *args: Any, **kwargs: Any) -> None:
        self.open_spans -= 1
        super().end(*args, **kwargs)


class Harness:
    """Steps a core at an instant of the test's choosing and lets telemetry observe."""

    def __init__(
        self, config: CoreConfig | None = None, *, traced: bool = True, core: Core | None = None
    ) -> None:
        self.core = core or Core(config or CoreConfig())
        self.now_ms = START_MS
        self.clock_ns = 0
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.stream = io.StringIO()
        self.metrics = Metrics([self.reader])
        self._tracing = CountingTracing(SimpleSpanProcessor(self.exporter) if traced else None)
        log = structlog.wrap_logger(
            structlog.WriteLogger(self.stream),
            processors=[
                told_late,
                structlog.processors.add_log_level,
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        self.telemetry = Telemetry(
            self._tracing,
            self.metrics,
            Lines(log),
            clock_ns=lambda: self.clock_ns,
        )

    def step(self, event: Event, after_ms: int = 0) -> list[Effect]:
        """Gives the core an event `after_ms` later."""
        self.now_ms += after_ms
        effects = self.core.step(event, self.now_ms)
        self.telemetry.steps.observe(effects, self.core, self.now_ms)
        return effects

    # --- events

    def host(self, *snapshots: PoolSnapshot, held: Sequence[HeldAttempt] = ()) -> list[Effect]:
        """Host h registers; without snapshots it has one pool."""
        return self.step(HostRegistered("h", 1, snapshots or (snapshot(),), tuple(held)))

    def enqueue(self, job: JobSpec) -> list[Effect]:
        """A job arrives."""
        return self.step(EnqueueRequested(job, reply_to=1))

    def run(self, job_id: str = "j", attempt: int = 1) -> None:
        """An attempt starts after 5 ms, its first token comes 20 ms later, its end 100 ms later."""
        self.step(AttemptStarted(job_id, attempt, kv_warmth=True), 5)
        self.step(OutputProgressed(job_id, attempt, 1), 20)
        usage = Usage(tokens_in=11, tokens_out=4)
        self.step(AttemptEnded(job_id, attempt, 3, Finish.EOS, usage=usage), 100)

    # --- what came out

    @property
    def open_spans(self) -> int:
        """Spans that were started and not ended."""
        return self._tracing.open_spans

    @property
    def held_spans(self) -> int:
        """Spans that were sampled out and wait for the end of their job."""
        return len(self._tracing._held)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Finished spans, of one name or all; each has only the keys that the table lists."""
        keys = {row.name: set(row.keys) for row in SPANS}
        spans = list(self.exporter.get_finished_spans())
        for span in spans:
            extra = set(span.attributes or {}) - keys[span.name]
            assert not extra, f"{span.name} has undocumented keys {extra}"
        return [span for span in spans if name in ("", span.name)]

    def span(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        (span,) = self.spans(name)
        return span

    def attributes(self, name: str) -> dict[str, Any]:
        """Attributes of the only span of a name, without the project's prefix."""
        attributes = self.span(name).attributes or {}
        return {key.removeprefix("llamaorch."): value for key, value in attributes.items()}

    def series(self, name: str) -> dict[Labels, Any]:
        """Data points of a metric by their labels."""
        self.metrics.sample(self.core, NoFleet())
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            frozenset((key, str(value)) for key, value in (point.attributes or {}).items()): point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }

    def total(self, name: str, **labels: str) -> int:
        """Sum of a counter or gauge over the series that have these labels."""
        wanted = frozenset(labels.items())
        return sum(p.value for key, p in self.series(name).items() if wanted <= key)

    def lines(self) -> list[dict[str, Any]]:
        """Log lines so far."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def line(self, event: str) -> dict[str, Any]:
        """The only line of an event."""
        (line,) = [line for line in self.lines() if line["event"] == event]
        return line


def assert_adds_up(harness: Harness) -> None:
    """What was enqueued has ended once, by some outcome, or lives."""
    live = sum(job.live for job in harness.core.jobs.values())
    by_outcome = [harness.total("tasks_finished_total", outcome=name) for name in OUTCOMES]
    assert harness.total("tasks_finished_total") == sum(by_outcome)
    assert harness.total("tasks_enqueued_total") == sum(by_outcome) + live
    assert harness.telemetry.steps.tracked == live
