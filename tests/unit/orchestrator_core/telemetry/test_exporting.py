"""Spans are exported as OpenTelemetry's own encoder would export them."""

import asyncio
import threading

import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from orchestrator_core.telemetry.exporting import encode
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.telemetry.tracing import Tracing, service_resource

_int64 = st.integers(-(1 << 63), (1 << 63) - 1)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
_value = st.one_of(
    _text,
    st.booleans(),
    _int64,
    st.floats(allow_nan=False),
    st.lists(_text, max_size=3),
    st.lists(_int64, max_size=3),
)
_contexts = st.builds(
    SpanContext,
    st.integers(1, (1 << 128) - 1),
    st.integers(1, (1 << 64) - 1),
    st.booleans(),
    st.just(TraceFlags(TraceFlags.SAMPLED)),
)
_instants_ms = st.integers(0, 1 << 43)
_spans = st.tuples(
    _text,
    st.none() | _contexts,
    _instants_ms,
    st.dictionaries(_text, _value, max_size=5),
    st.sampled_from(SpanKind),
    st.lists(_contexts, max_size=2),
    _instants_ms,
    st.sampled_from(["", "cancelled", "ADMISSION_REJECT", "ü"]),
)


def ended(asked: list[tuple]) -> list[ReadableSpan]:  # type: ignore[type-arg]
    """The spans that a processor is given."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter), resource=service_resource())
    for *fields, end_ms, error in asked:
        tracing.end(tracing.start(*fields), end_ms, error=error)
    return list(exporter.get_finished_spans())


@given(st.lists(_spans, min_size=1, max_size=5))
def test_spans_are_encoded_as_the_sdk_encodes_them(asked: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever they are called, and whatever they carry."""
    spans = ended(asked)

    request = encode(spans)

    assert len(spans) == len(asked)
    assert request == encode_spans(spans)


def test_a_span_that_cannot_be_encoded_takes_no_other_with_it() -> None:
    """Half a character in a text: that span is lost, and told."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    parent = SpanContext(1, 1, True, TraceFlags(TraceFlags.SAMPLED))

    async def burst() -> None:
        tracing.instant("before", parent, 0, {})
        tracing.instant("odd", parent, 0, {"text": "\ud800"})
        tracing.instant("after", parent, 0, {})
        await asyncio.sleep(0)

    with structlog.testing.capture_logs() as lines:
        asyncio.run(burst())

    assert [span.name for span in exporter.get_finished_spans()] == ["before", "after"]
    assert [line["event"] for line in lines] == ["span_lost"]


def test_spans_that_wait_are_exported_at_the_end() -> None:
    """They ended a moment before their service does."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    parent = SpanContext(1, 1, True, TraceFlags(TraceFlags.SAMPLED))

    async def stop() -> None:
        for name in ("first", "last"):
            tracing.instant(name, parent, 0, {})
        tracing.shutdown(1_000)

    asyncio.run(stop())

    assert [span.name for span in exporter.get_finished_spans()] == ["first", "last"]


def test_the_loop_hands_over_the_last_spans() -> None:
    """A thread that did so beside the loop could be done before it, and end the export."""
    handed_by: list[int] = []

    class Processor(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            handed_by.append(threading.get_ident())

    tracing = Tracing(Processor())
    parent = SpanContext(1, 1, True, TraceFlags(TraceFlags.SAMPLED))

    async def stop() -> None:
        tracing.instant("first", parent, 0, {})
        await asyncio.sleep(0)
        tracing.instant("last", parent, 0, {})
        await Telemetry(tracing).shutdown()

    asyncio.run(stop())

    assert handed_by == [threading.get_ident()] * 2


def test_a_sampler_that_drops_leaves_a_context_but_no_span() -> None:
    """A pool still learns of the trace, and that it is not sampled."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter), ALWAYS_OFF)

    call = tracing.start("enqueue", None, 0, {}, SpanKind.SERVER)
    span = tracing.start("admit", call.context, 0, {})
    tracing.end(span, 1)
    tracing.decide(call.context, keep=False)

    assert span.context.is_valid
    assert not span.context.trace_flags.sampled
    assert exporter.get_finished_spans() == ()
