"""Making spans, and W3C trace contexts also where no span is exported. Design §8.

With an OTLP endpoint every decision is a span. Without one there is no span at all, but every job
still has a trace context: the caller's, handed on unchanged, or a fresh one. So a trace stays whole
when only the client and the pool export it.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from orchestrator_core.telemetry.exporting import EncodedSpan, SpanExporter
from orchestrator_core.telemetry.gathering import Gathered
from orchestrator_core.telemetry.held import HeldSpans
from orchestrator_core.telemetry.names import ERROR_TYPE, SEMCONV_VERSION, SERVICE

Value = str | bool | int | float | Sequence[str] | Sequence[int]
Attributes = Mapping[str, Value]
# What is not looked at before the export, and costs less there, may be told by a function.
LateAttributes = Callable[[], Attributes]

SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"

# One step can end a thousand jobs at once; what is beyond this bound is dropped and logged.
QUEUED_SPANS_MAX: Final = 16_384

_log = structlog.get_logger(SERVICE)
_NS_PER_MS = 1_000_000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
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


class Span(EncodedSpan):
    """A span, open until `finish`. One object for both: a second costs as much again."""

    _events = ()
    _instrumentation_info = None
    _end_time: int | None = None
    _status = _UNSET

    def __init__(
        self,
        identity: tuple[str, SpanContext, SpanContext | None, SpanKind],
        start_ns: int,
        attributes: Attributes | LateAttributes,
        links: Sequence[SpanContext],
        emitter: tuple[Resource, InstrumentationScope],
    ) -> None:
        self._name, self._given, self._parent, self._kind = identity
        self._context = self._given
        self._start_time = self._began_ns = start_ns
        self._own = attributes
        self._links = [Link(linked) for linked in links] if links else ()
        self._emitter = emitter
        self._resource, self._instrumentation_scope = emitter

    @property
    def context(self) -> SpanContext:
        """Its trace context."""
        return self._given

    @property
    def attributes(self) -> Attributes:
        """What it tells; see `LateAttributes`."""
        own = self._own
        if callable(own):
            self._own = own = own()
        return own

    # Where the SDK's own methods look.
    _attributes = attributes

    @property
    def family(self) -> int:
        """Id of the span that enqueued its job; of a call, and of what has no job, its own."""
        parent: SpanContext | None = self._parent
        if parent is None or self._kind is SpanKind.SERVER:
            return self.context.span_id
        return parent.span_id

    def finish(self, end_ns: int, attributes: Attributes | None, error: str) -> None:
        """Ends it; see `Tracing.end`."""
        self._end_time = end_ns
        if attributes:
            self._own = {**self.attributes, **attributes}
        if error:
            self._own = {**self.attributes, ERROR_TYPE: error}
            self._status = Status(StatusCode.ERROR, error)

    def told_after_all(self) -> "Span":
        """The same open span for a processor, which takes sampled ones only."""
        context = SpanContext(self.context.trace_id, self.context.span_id, False, _SAMPLED)
        identity = (self._name, context, self._parent, self._kind)
        links = [link.context for link in self._links]
        return Span(identity, self._began_ns, self._own, links, self._emitter)


class Tracing:
    """Makes spans for `processor`, or only trace contexts without one. Sets nothing global.

    Instants are milliseconds since the epoch, as the core's clock gives them. The spans are made
    here and not by the SDK's tracer, whose `start_span` and `end` took a fifth of the event loop's
    time for an accept: ours need no lock, no events or links, and no cleaning, as all attributes
    come from this package and are bounded.
    """

    def __init__(
        self,
        processor: SpanProcessor | None = None,
        sampler: Sampler = DEFAULT_ON,
        resource: Resource | None = None,
    ) -> None:
        self._processor = processor
        self._sampler = None if sampler is DEFAULT_ON else sampler
        scope = InstrumentationScope(SERVICE, schema_url=SCHEMA_URL)
        self._emitter = (resource or Resource.get_empty(), scope)
        self._ids = RandomIdGenerator()
        self._later = Gathered(_done)
        self._held = HeldSpans(self._emit)

    @property
    def enabled(self) -> bool:
        """True when spans are made."""
        return self._processor is not None

    def context(self, traceparent: str) -> SpanContext:
        """The trace context that a caller sent, else a fresh one, marked as sampled."""
        return parse_traceparent(traceparent) or SpanContext(
            self._ids.generate_trace_id(),
            self._ids.generate_span_id(),
            is_remote=True,
            trace_flags=_SAMPLED,
        )

    def start(
        self,
        name: str,
        parent: SpanContext | None,
        start_ms: int | None,
        attributes: Attributes | LateAttributes,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[SpanContext] = (),
    ) -> Span:
        """Starts a span under `parent` (None: a new trace) at `start_ms` (None: now)."""
        return self._made(name, parent, start_ms, attributes, kind, links)

    def _made(
        self,
        name: str,
        parent: SpanContext | None,
        start_ms: int | None,
        attributes: Attributes | LateAttributes,
        kind: SpanKind,
        links: Sequence[SpanContext],
    ) -> Span:
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        flags = _SAMPLED if parent is None else parent.trace_flags
        # What belongs to no call is rare and always told: a drain.
        if self._sampler is not None and (parent is not None or kind is SpanKind.SERVER):
            told = attributes() if callable(attributes) else attributes
            flags = _flags(self._sampler, parent, trace_id, name, kind, told)
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, flags)
        start_ns = time.time_ns() if start_ms is None else start_ms * _NS_PER_MS
        return Span((name, context, parent, kind), start_ns, attributes, links, self._emitter)

    def end(
        self, span: Span, end_ms: int | None, attributes: Attributes | None = None, error: str = ""
    ) -> None:
        """Ends a span; `error` is a short stable reason, never a message.

        One that was sampled out is held until `decide` tells what becomes of its job.
        """
        if self._processor is None:
            return
        end_ns = time.time_ns() if end_ms is None else end_ms * _NS_PER_MS
        if span.context.trace_flags & TraceFlags.SAMPLED:
            self._later.put(partial(self._end, span, end_ns, attributes, error))
        else:
            told = span.told_after_all()
            told.finish(end_ns, attributes, error)
            self._held.add(span.family, told)

    def instant(
        self,
        name: str,
        parent: SpanContext | None,
        at_ms: int,
        attributes: Attributes | LateAttributes,
        links: Sequence[SpanContext] = (),
    ) -> None:
        """A span of something that took no time."""
        if self._sampler is None and parent is not None and parent.trace_flags & TraceFlags.SAMPLED:
            self._later.put(partial(self._instant, name, parent, at_ms, attributes, links))
        else:
            self.end(self.start(name, parent, at_ms, attributes, links=links), at_ms)

    def _instant(
        self,
        name: str,
        parent: SpanContext,
        at_ms: int,
        attributes: Attributes | LateAttributes,
        links: Sequence[SpanContext],
    ) -> None:
        span = self._made(name, parent, at_ms, attributes, SpanKind.INTERNAL, links)
        self._end(span, at_ms * _NS_PER_MS, None, "")

    def _end(self, span: Span, end_ns: int, attributes: Attributes | None, error: str) -> None:
        span.finish(end_ns, attributes, error)
        self._emit(span)

    def decide(self, call: SpanContext, *, keep: bool) -> None:
        """A job is over, or was never accepted: `call` enqueued it, or is the call that failed.

        With `keep` its spans are exported also when they were sampled out.
        """
        if self._processor is not None and not call.trace_flags & TraceFlags.SAMPLED:
            self._held.decide(call.span_id, keep=keep)

    def _emit(self, span: EncodedSpan) -> None:
        if self._processor is not None:
            # Now and not by the thread that exports: what it tells is in the processor's caches.
            span.encoded()
            self._processor.on_end(span)

    def flush(self) -> None:
        """Hands the spans that have ended to the processor, now."""
        self._later.flush()

    def shutdown(self, timeout_ms: int) -> bool:
        """Sends what is left, for at most `timeout_ms`. Blocks. True when all was handed over."""
        if self._processor is None:
            return True
        self.flush()
        # The SDK's own timeouts do not cover an export that is under way.
        worker = threading.Thread(
            target=self._processor.shutdown, name="traces-shutdown", daemon=True
        )
        worker.start()
        worker.join(timeout_ms / 1000)
        return not worker.is_alive()


def _done(pieces: Sequence[Callable[[], None]]) -> None:
    for piece in pieces:
        try:
            piece()
        except Exception:  # noqa: BLE001 - no span may take others with it
            _log.exception("span_lost", human="A span could not be made; the others are there.")


def _flags(
    sampler: Sampler,
    parent: SpanContext | None,
    trace_id: int,
    name: str,
    kind: SpanKind,
    attributes: Attributes,
) -> TraceFlags:
    """What a sampler that somebody chose says; the default one does as its parent did."""
    above = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
    result = sampler.should_sample(above, trace_id, name, kind, attributes)
    sampled = result.decision is Decision.RECORD_AND_SAMPLE
    return _SAMPLED if sampled else TraceFlags(TraceFlags.DEFAULT)


def otlp_tracing(endpoint: str) -> Tracing:
    """Tracing that exports to an OTLP/gRPC endpoint; off when `endpoint` is empty.

    Without OTEL_TRACES_SAMPLER everything is sampled that the caller did not sample out; of the
    rest, what failed is exported too. Headers,
    certificates and timeouts are OpenTelemetry's own variables, read by its SDK.
    """
    if not endpoint:
        return Tracing()
    # The SDK reads the sampler's variables; its provider is of no other use here.
    sampler = TracerProvider(shutdown_on_exit=False).sampler
    processor = BatchSpanProcessor(SpanExporter(endpoint=endpoint), max_queue_size=QUEUED_SPANS_MAX)
    return Tracing(processor, sampler, service_resource())


def service_resource() -> Resource:
    """Who emits the signals. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have precedence."""
    from_environment = Resource.create()
    named = from_environment.attributes.get(SERVICE_NAME, "")
    if str(named).startswith("unknown_service"):
        return from_environment.merge(Resource({SERVICE_NAME: SERVICE}))
    return from_environment
