"""Making spans, and W3C trace contexts also where no span is exported. Design §8.

With an OTLP endpoint every decision is a span. Without one there is no span at all, but every job
still has a trace context: the caller's, handed on unchanged, or a fresh one. So a trace stays whole
when only the client and the pool export it.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from orchestrator_core.telemetry.names import ERROR_TYPE, SEMCONV_VERSION, SERVICE

Value = str | bool | int | float | Sequence[str] | Sequence[int]
Attributes = Mapping[str, Value]

SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"

# One step can end a thousand jobs at once; what is beyond this bound is dropped and logged.
QUEUED_SPANS_MAX: Final = 16_384

_NS_PER_MS = 1_000_000
_EMPTY: Final = Context()
# Source: W3C Trace Context, §3.2: version ff and all-zero ids are invalid, later versions may add
# fields behind a hyphen.
_TRACEPARENT: Final = re.compile(
    r"^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$"
)
_LENGTH_MAX = 256


def parse_traceparent(text: str) -> SpanContext | None:
    """Reads a W3C traceparent; None when it is absent or malformed."""
    match = _TRACEPARENT.match(text) if len(text) <= _LENGTH_MAX else None
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    # Of the flags only "sampled" is defined in version 00.
    sampled = TraceFlags(int(flags, 16) & TraceFlags.SAMPLED)
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=sampled)


def format_traceparent(context: SpanContext) -> str:
    """Writes a W3C traceparent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Tracing:
    """Makes spans with `provider`, or only trace contexts without one. Sets nothing global.

    Instants are milliseconds since the epoch, as the core's clock gives them.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer(
            SERVICE, schema_url=SCHEMA_URL
        )
        self._ids = RandomIdGenerator()

    @property
    def enabled(self) -> bool:
        """True when spans are made."""
        return self._provider is not None

    def context(self, traceparent: str) -> SpanContext:
        """The trace context that a caller sent, else a fresh one, marked as sampled."""
        return parse_traceparent(traceparent) or SpanContext(
            self._ids.generate_trace_id(),
            self._ids.generate_span_id(),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )

    def start(
        self,
        name: str,
        parent: SpanContext | None,
        start_ms: int | None,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        """Starts a span under `parent` (None: a new trace) at `start_ms` (None: now)."""
        context = (
            _EMPTY
            if parent is None
            else trace.set_span_in_context(NonRecordingSpan(parent), _EMPTY)
        )
        start_ns = None if start_ms is None else start_ms * _NS_PER_MS
        return self._tracer.start_span(name, context, kind, attributes, start_time=start_ns)

    @staticmethod
    def end(span: Span, end_ms: int | None, attributes: Attributes, error: str = "") -> None:
        """Ends a span; `error` is a short stable reason, never a message."""
        span.set_attributes(attributes)
        if error:
            span.set_attribute(ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(None if end_ms is None else end_ms * _NS_PER_MS)

    @staticmethod
    def current(span: Span | None) -> AbstractContextManager[object]:
        """Makes a span the current one of this task while the block runs; None: changes nothing."""
        if span is None:
            return nullcontext()
        return trace.use_span(
            span, end_on_exit=False, record_exception=False, set_status_on_exception=False
        )

    @staticmethod
    def current_context() -> SpanContext | None:
        """Context of this task's current span, None outside of one."""
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid else None

    def shutdown(self, timeout_ms: int) -> bool:
        """Sends what is left, for at most `timeout_ms`. Blocks. True when all was handed over."""
        provider = self._provider
        if provider is None:
            return True
        # The SDK's own timeouts do not cover an export that is under way.
        worker = threading.Thread(target=provider.shutdown, name="traces-shutdown", daemon=True)
        worker.start()
        worker.join(timeout_ms / 1000)
        return not worker.is_alive()


def otlp_tracing(endpoint: str) -> Tracing:
    """Tracing that exports to an OTLP/gRPC endpoint; off when `endpoint` is empty.

    Without OTEL_TRACES_SAMPLER everything is sampled that the caller did not sample out. Headers,
    certificates and timeouts are OpenTelemetry's own variables, read by its SDK.
    """
    if not endpoint:
        return Tracing()
    provider = TracerProvider(resource=service_resource(), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUED_SPANS_MAX))
    return Tracing(provider)


def service_resource() -> Resource:
    """Who emits the signals. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have precedence."""
    from_environment = Resource.create()
    named = from_environment.attributes.get(SERVICE_NAME, "")
    if str(named).startswith("unknown_service"):
        return from_environment.merge(Resource({SERVICE_NAME: SERVICE}))
    return from_environment
