"""Telemetry of orchestratord: what its parts report, how it is exported. Design §8."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import grpc
import structlog
from aiohttp import web
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.config.live import ReloadReport
from orchestrator_core.config.schema import Config
from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.machine import Core
from orchestrator_core.telemetry.calls import Call, Calls, Metadata, operator_context
from orchestrator_core.telemetry.fleet import FleetView, NoFleet
from orchestrator_core.telemetry.line_sink import set_log_level
from orchestrator_core.telemetry.logs import Lines
from orchestrator_core.telemetry.metrics import CARDINALITY, Metrics
from orchestrator_core.telemetry.names import SERVICE
from orchestrator_core.telemetry.observer import StepObserver
from orchestrator_core.telemetry.rpcs import WatchedService
from orchestrator_core.telemetry.scrape import ScrapeEndpoint
from orchestrator_core.telemetry.service_metrics import ServiceFacts
from orchestrator_core.telemetry.spans import Spans
from orchestrator_core.telemetry.tracing import Tracing, otlp_tracing, parse_traceparent

_log = structlog.get_logger(SERVICE)

# Gauges are read this often for OTLP; a Prometheus scrape reads them itself.
SAMPLE_EVERY_MS = 10_000
# The event loop is asked this often how late it is.
BEAT_MS = 1_000


class Telemetry:
    """Derives spans, metrics and log lines of a service; `steps` sees what its core decides.

    All methods belong to the event loop's thread. `clock_ns` is monotonic.
    """

    def __init__(
        self,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        lines: Lines | None = None,
        fleet: FleetView | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._tracing = tracing or Tracing()
        self._spans = Spans(self._tracing) if self._tracing.enabled else None
        self._metrics = metrics or Metrics()
        self._lines = lines or Lines()
        self._fleet = fleet or NoFleet()
        self.steps = StepObserver(self._tracing, self._spans, self._metrics, self._lines)
        self._calls = Calls(self._tracing, self._metrics, self.steps.refused_by_shell, clock_ns)
        self._stopped = False
        self._push = False
        self._facts: Callable[[], ServiceFacts] = ServiceFacts
        self._beats: asyncio.Task[None] | None = None
        self._scrape: ScrapeEndpoint | None = None
        self._listen = ""

    @classmethod
    def from_config(cls, config: Config, fleet: FleetView | None = None) -> "Telemetry":
        """Telemetry with the exporters that a configuration asks for."""
        readers: list[MetricReader] = []
        scrape = None
        if config.metrics_listen:
            scrape = ScrapeEndpoint()
            readers.append(scrape.reader)
        if config.otlp_metrics_endpoint:
            exporter = OTLPMetricExporter(endpoint=config.otlp_metrics_endpoint)
            readers.append(PeriodicExportingMetricReader(exporter, cardinality_limits=CARDINALITY))
        telemetry = cls(otlp_tracing(config.otlp_traces_endpoint), Metrics(readers), fleet=fleet)
        telemetry._scrape, telemetry._listen = scrape, config.metrics_listen
        telemetry._push = bool(config.otlp_metrics_endpoint)
        return telemetry

    # --- life

    async def start(
        self,
        core: Core,
        facts: Callable[[], ServiceFacts] = ServiceFacts,
        routes: Iterable[web.RouteDef] = (),
    ) -> int | None:
        """Opens the Prometheus endpoint where one is configured; returns its port.

        `facts` are read with the gauges, on the event loop. `routes` are served on the same port.

        Raises:
            OSError: when the address cannot be bound.
        """
        self._facts = facts
        port = None
        if self._scrape is not None:
            port = await self._scrape.start(self._listen, lambda: self._sample(core), routes)
        if self._scrape is not None or self._push:
            self._beats = asyncio.create_task(self._beat(core), name="telemetry")
        return port

    async def shutdown(self, timeout_ms: int = 2_000) -> None:
        """Closes the endpoint, sends what is left for at most `timeout_ms` each. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.wait((self._beats,))
        if self._scrape is not None:
            await self._scrape.stop()
        if self.steps.core is not None:
            self._sample(self.steps.core)
        # Here and not in a thread: what the loop just took in hand would come after the end.
        self._tracing.flush()
        await asyncio.gather(
            asyncio.to_thread(self._tracing.shutdown, timeout_ms),
            asyncio.to_thread(self._metrics.shutdown, timeout_ms),
        )

    async def _beat(self, core: Core) -> None:
        """Measures the event loop's lateness, and reads gauges now and then for OTLP."""
        loop = asyncio.get_running_loop()
        per_sample = SAMPLE_EVERY_MS // BEAT_MS
        beats = 0
        while True:
            due_s = loop.time() + BEAT_MS / 1000
            await asyncio.sleep(BEAT_MS / 1000)
            self._metrics.service.loop_was_late(max(0.0, loop.time() - due_s) * 1000)
            beats += 1
            if beats % per_sample == 0:
                try:
                    self._sample(core)
                except Exception:  # noqa: BLE001 - the next one may go well, and lateness is measured
                    _log.exception("sample_failed", human="The gauges could not be read.")

    def _sample(self, core: Core) -> None:
        self._metrics.sample(core, self._fleet, self._facts())

    # --- calls

    def rpc(self, name: str, metadata: Metadata | None) -> Call:
        """Spans one enqueue or cancel, from receipt to its answer; the span is current meanwhile.

        An enqueue that is answered well records its latency, one that raises `RefusalError` counts
        as rejected. A submit to the core must happen in the same task.
        """
        return self._calls.rpc(name, metadata)

    def host_down(self, host_id: str, why: str) -> None:
        """The stream of a host ended; `why` is a short phrase."""
        self._lines.host_down(host_id, why)
        self._metrics.service.host_down(host_id)

    def host_reported(self, pool: snapshot_pb2.PoolSnapshot) -> None:
        """A host reported a pool that it may report."""
        self._metrics.reported(pool)

    def committed(self, outcome: str, took_ms: float, records: int) -> None:
        """A batch of records was written to the journal, or was not. See `MeasuredStore`."""
        self._metrics.service.committed(outcome, took_ms, records)

    def watched(self, service: grpc.GenericRpcHandler) -> grpc.GenericRpcHandler:
        """The handlers of a service, their calls counted."""
        return WatchedService(service, self._metrics.service, self._tracing)

    def pool_reloaded(self, pool_id: str, outcome: str, why: str, span_ms: tuple[int, int]) -> None:
        """A pool was reloaded or was not; `span_ms` is from the command to its end."""
        self._lines.pool_reloaded(pool_id, outcome, why)
        if self._spans is not None:
            self._spans.pool_reloaded(pool_id, outcome, why, operator_context(), span_ms)

    def model_verified(
        self,
        model_id: str,
        pools: Sequence[tuple[str, DigestVerdict]],
        verified: bool,
        now_ms: int,
    ) -> None:
        """A model was compared with what `pools` report: their engines, and how it compares."""
        for engine, verdict in pools:
            self._metrics.service.digest_judged(verdict, engine)
        self._lines.model_verified(model_id, len(pools), verified=verified)
        if self._spans is not None:
            call = operator_context()
            self._spans.model_verified(model_id, len(pools), call, now_ms, verified=verified)

    def signature_checked(self, model_id: str, verdict: str) -> None:
        """The signature of a model was checked; `verdict` is verified, missing, unchecked, ..."""
        self._metrics.service.signature_checked(verdict)
        if verdict != "verified":
            self._lines.signature_unsure(model_id, verdict)

    def outbound_decided(
        self, told: Mapping[str, str | bool], why: str, metadata: Metadata, now_ms: int
    ) -> None:
        """A client's tool may connect to a host, or may not, then `why`; `told` are keys to log."""
        self._lines.outbound_decided(told, why)
        if self._spans is not None:
            caller = next((str(value) for key, value in metadata if key == "traceparent"), "")
            self._spans.outbound_decided(told, parse_traceparent(caller), now_ms)

    def log_from(self, level: str) -> None:
        """Logs lines of at least this level from now on."""
        set_log_level(level)
        self._lines.level_changed()

    def config_reloaded(self, report: ReloadReport, now_ms: int) -> None:
        """The configuration was read again."""
        self._lines.config_reloaded(report)
        self._metrics.service.config_reloaded(report.outcome)
        if self._spans is not None:
            self._spans.config_reloaded(report, now_ms)
