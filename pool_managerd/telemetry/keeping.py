"""Spans of attempts that were sampled out, exported after all where the attempt failed. Design §8.

Whether anybody will ask for a trace is known when the attempt ends. Spans that belong to no job are
rare and always exported.
"""

from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
)
from opentelemetry.util.types import Attributes

# Attempts with held spans, and spans of one: far more than run, and than one has.
ATTEMPTS_MAX: Final = 4_096
SPANS_MAX: Final = 32


class RecordingSampler(Sampler):
    """Decides as another one does, but records what that drops: `KeepingProcessor` may want it."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(  # noqa: PLR0913, PLR0917 - OpenTelemetry's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler.should_sample`."""
        if not get_current_span(parent_context).get_span_context().is_valid:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        result = self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        """See `Sampler.get_description`."""
        return f"RecordingSampler{{{self._sampler.get_description()}}}"


class KeepingProcessor(SpanProcessor):
    """Hands sampled spans on, and those of an attempt that was sampled out once that has failed."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._held: dict[int, list[ReadableSpan]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor.on_start`."""
        self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """See `SpanProcessor.on_end`. Children end before the attempt that is their parent."""
        context, parent = span.context, span.parent
        if context.trace_flags & TraceFlags.SAMPLED:
            self._processor.on_end(span)
        elif parent is not None and not parent.is_remote:
            spans = self._held.setdefault(parent.span_id, [])
            if len(spans) < SPANS_MAX:
                spans.append(span)
            if len(self._held) > ATTEMPTS_MAX:
                del self._held[next(iter(self._held))]
        else:
            spans = [*self._held.pop(context.span_id, ()), span]
            if span.status.status_code is StatusCode.ERROR:
                for kept in spans:
                    self._processor.on_end(_sampled(kept))

    def shutdown(self) -> None:
        """See `SpanProcessor.shutdown`."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanProcessor.force_flush`."""
        return self._processor.force_flush(timeout_millis)


def _sampled(span: ReadableSpan) -> ReadableSpan:
    """The span as if it had been sampled: exporters take no other."""
    context = span.context
    flags = TraceFlags(TraceFlags.SAMPLED)
    return ReadableSpan(
        span.name,
        SpanContext(context.trace_id, context.span_id, is_remote=False, trace_flags=flags),
        span.parent,
        span.resource,
        span.attributes,
        span.events,
        span.links,
        span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
