"""Spans and log lines. Never prompts, tokens or secrets. HME-030, ORCH-3027, ORCH-3300.

Spans and their attributes, each under the prefix `llamaorch.`:

- `pool.attempt`: job_id, attempt, pool_id, replica_id, session_id, correlation_id, outcome,
  tokens_out
- `engine.generate`: job_id, attempt, pool_id, replica_id
- `attempt.cancel`: job_id, attempt, pool_id, replica_id, confirmed
- `pool.start`: pool_id, replica_id, outcome
- `pool.stop`: pool_id, replica_id, reason
- `pool.drain`: pool_id, reason
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TextIO, cast

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SPAN_ATTEMPT: Final = "pool.attempt"
SPAN_GENERATE: Final = "engine.generate"
SPAN_CANCEL: Final = "attempt.cancel"
SPAN_START: Final = "pool.start"
SPAN_STOP: Final = "pool.stop"
SPAN_DRAIN: Final = "pool.drain"

_PREFIX: Final = "llamaorch."
_SERVICE: Final = "pool-managerd"
_PROPAGATOR: Final = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | bool]

log: structlog.stdlib.BoundLogger = structlog.get_logger(_SERVICE)


class _Unfailing:
    """A stream whose reader may be gone: what cannot be written is dropped, never raised.

    A log line must not break the job that it tells about.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or drops the text."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, or gives up."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(level: str) -> None:
    """Sends JSON lines of at least `level` to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )


class Telemetry:
    """Makes spans; exports them over OTLP when `otlp_endpoint` is not empty.

    The exporter reads OpenTelemetry's other variables (headers, certificates, timeouts) itself.
    """

    def __init__(self, otlp_endpoint: str = "") -> None:
        self._provider: TracerProvider | None = None
        if otlp_endpoint:
            self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: _SERVICE}))
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint)))
        provider = self._provider or NoOpTracerProvider()
        self._tracer: Tracer = provider.get_tracer(_SERVICE)

    @contextmanager
    def span(self, name: str, attributes: Attributes, traceparent: str = "") -> Iterator[Span]:
        """A span for the duration of the block.

        Child of `traceparent`, else of the current span.
        """
        context = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
        named = {_PREFIX + key: value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(name, context=context, attributes=named) as span:
            yield span

    def event(self, name: str, attributes: Attributes) -> None:
        """A span without duration: something was decided or happened."""
        with self.span(name, attributes):
            pass

    @staticmethod
    def annotate(span: Span, attributes: Attributes) -> None:
        """Adds what is known only at the end."""
        for key, value in attributes.items():
            span.set_attribute(_PREFIX + key, value)

    @staticmethod
    def traceparent() -> str:
        """W3C traceparent of the current span, or an empty string outside of one."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier.get("traceparent", "")

    def shutdown(self) -> None:
        """Sends what is left. Blocks for at most the exporter's timeout: call it off the loop."""
        if self._provider is not None:
            self._provider.shutdown()
