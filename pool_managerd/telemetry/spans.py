"""Makes spans, exports them and the metrics. Never prompts, tokens or secrets. ORCH-3027."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pool_managerd.telemetry.keeping import KeepingProcessor, RecordingSampler
from pool_managerd.telemetry.logs import log
from pool_managerd.telemetry.metrics import CARDINALITY, Metrics
from pool_managerd.telemetry.names import ERROR_TYPE, key
from pool_managerd.telemetry.scrape import ScrapeEndpoint

# The event loop is asked this often how late it is.
BEAT_MS = 1_000
# Gauges are read this often for OTLP; a Prometheus scrape reads them itself.
SAMPLE_EVERY_MS = 10_000

_SERVICE: Final = "pool-managerd"
_PROPAGATOR: Final = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class Telemetry:
    """Makes spans, holds the metrics, and exports both where a configuration asks for it.

    OpenTelemetry's exporters read their other variables (headers, certificates, timeouts)
    themselves. `start` opens the Prometheus endpoint; `stop` sends what is left.
    """

    def __init__(
        self, otlp_endpoint: str = "", otlp_metrics_endpoint: str = "", metrics_listen: str = ""
    ) -> None:
        self._provider: TracerProvider | None = None
        resource = Resource.create({SERVICE_NAME: _SERVICE})
        if otlp_endpoint:
            # The SDK reads the sampler's variables.
            sampler = RecordingSampler(TracerProvider(shutdown_on_exit=False).sampler)
            self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            exporting = BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint))
            self._provider.add_span_processor(KeepingProcessor(exporting))
        provider = self._provider or NoOpTracerProvider()
        self._tracer: Tracer = provider.get_tracer(_SERVICE)
        readers: list[MetricReader] = []
        self._scrape = ScrapeEndpoint() if metrics_listen else None
        self._listen = metrics_listen
        if self._scrape is not None:
            readers.append(self._scrape.reader)
        if otlp_metrics_endpoint:
            exporter = OTLPMetricExporter(otlp_metrics_endpoint)
            readers.append(PeriodicExportingMetricReader(exporter, cardinality_limits=CARDINALITY))
        self.metrics = Metrics(readers, resource)
        self._measures = bool(readers)
        self._sample: Callable[[], None] = lambda: None
        self._beats: asyncio.Task[None] | None = None

    async def start(self, sample: Callable[[], None]) -> int | None:
        """Opens the Prometheus endpoint where one is configured; returns its port.

        `sample` brings the metrics up to date; it runs on the event loop before each export.

        Raises:
            OSError: when the address cannot be bound.
        """
        self._sample = sample
        port = None
        if self._scrape is not None:
            port = await self._scrape.start(self._listen, sample)
        if self._measures:
            self._beats = asyncio.create_task(self._beat(), name="telemetry")
        return port

    async def stop(self, timeout_ms: int) -> None:
        """Closes the endpoint and sends what is left, for about `timeout_ms`. Idempotent."""
        beats, self._beats = self._beats, None
        if beats is not None:
            beats.cancel()
            await asyncio.wait((beats,))
            self._sample()
        if self._scrape is not None:
            await self._scrape.stop()
        # The SDK waits for half a minute, and at its end a process for every thread but daemons.
        # What a collector that hangs has not taken in time is lost.
        ends: list[Callable[[], None]] = [lambda: self.metrics.shutdown(timeout_ms)]
        if self._provider is not None:
            ends.append(self._provider.shutdown)
        sending = [threading.Thread(target=end, name="telemetry-stop", daemon=True) for end in ends]
        for thread in sending:
            thread.start()
        joins = (asyncio.to_thread(thread.join, timeout_ms / 1000) for thread in sending)
        await asyncio.gather(*joins)

    async def _beat(self) -> None:
        """Measures the event loop's lateness, and reads gauges now and then for OTLP."""
        loop = asyncio.get_running_loop()
        beats = 0
        while True:
            due_s = loop.time() + BEAT_MS / 1000
            await asyncio.sleep(BEAT_MS / 1000)
            self.metrics.loop_was_late(max(0.0, loop.time() - due_s) * 1000)
            beats += 1
            if beats % (SAMPLE_EVERY_MS // BEAT_MS) == 0:
                try:
                    self._sample()
                except Exception:  # noqa: BLE001 - the next one may go well, and lateness is measured
                    log.exception("sample_failed", human="The gauges could not be read.")

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Attributes,
        traceparent: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Iterator[Span]:
        """A span for the duration of the block.

        Child of `traceparent`, else of the current span.
        """
        context = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
        named = {key(short): value for short, value in attributes.items()}
        # An exception's text may quote what the client sent: its type stands in the log line.
        with self._tracer.start_as_current_span(
            name, context, kind, named, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span

    def event(
        self, name: str, attributes: Attributes, traceparent: str = "", error: str = ""
    ) -> None:
        """A span without duration: something was decided or happened."""
        with self.span(name, attributes, traceparent) as span:
            self.annotate(span, {}, error)

    @staticmethod
    def annotate(span: Span, attributes: Attributes, error: str = "") -> None:
        """Adds what is known only at the end; `error` is a short stable reason."""
        for short, value in attributes.items():
            span.set_attribute(key(short), value)
        if error:
            span.set_attribute(ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR, error))

    @staticmethod
    def traceparent() -> str:
        """W3C traceparent of the current span, or an empty string outside of one."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier.get("traceparent", "")
