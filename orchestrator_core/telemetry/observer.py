"""Telemetry of orchestratord: sees every step of the core, says what happened. Design §8.

`observe` is called with the effects of each step and never waits. It looks only at effects that
change something for a job; token output does not come by here.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import grpc
from aiohttp import web
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.trace import SpanContext

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.config import Config
from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.effects import (
    AcceptRecord,
    AttemptClosed,
    CancelUnconfirmed,
    CatalogRecord,
    DispatchRecord,
    Effect,
    JobEnded,
    JobForgotten,
    JobStarted,
    ModelClosed,
    OfferDeclined,
    PoolDrainRecord,
    PoolVerified,
    Receipt,
    ReplyAccepted,
    ReplyRefused,
    SendRelease,
    SendStart,
    SendVerdicts,
    Verdict,
)
from orchestrator_core.core.job import Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.live_config import ReloadReport
from orchestrator_core.telemetry.calls import Call, Calls, Metadata, current_rpc
from orchestrator_core.telemetry.fleet import FleetView, NoFleet
from orchestrator_core.telemetry.line_sink import set_log_level
from orchestrator_core.telemetry.logs import Lines
from orchestrator_core.telemetry.metrics import CARDINALITY, Metrics
from orchestrator_core.telemetry.rpcs import WatchedService
from orchestrator_core.telemetry.scrape import ScrapeEndpoint
from orchestrator_core.telemetry.service_metrics import ServiceFacts
from orchestrator_core.telemetry.spans import Spans, dispatch_traceparent
from orchestrator_core.telemetry.tracing import (
    Tracing,
    format_traceparent,
    otlp_tracing,
    parse_traceparent,
)
from orchestrator_core.telemetry.tracked import Tracked

# Verdicts of one registration that get a span of their own; the log line counts them all.
VERDICT_SPANS_MAX = 256
# Gauges are read this often for OTLP; a Prometheus scrape reads them itself.
SAMPLE_EVERY_MS = 10_000
# The event loop is asked this often how late it is.
BEAT_MS = 250


class Telemetry:
    """Derives spans, metrics and log lines from what the core decides.

    Owns the state of live jobs; it is freed when a job ends or is forgotten. All methods belong to
    the event loop's thread. `clock_ns` is monotonic.
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
        self._calls = Calls(self._tracing, self._metrics, self._refused_by_shell, clock_ns)
        self._core: Core | None = None
        self._tracked: dict[str, Tracked] = {}
        self._displaced: dict[str, str] = {}
        # The trace of a job that was dropped in this step, for the one that it made room for.
        self._gave_way: SpanContext | None = None
        self._draining = False
        self._stopped = False
        self._now_ms = 0
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

    @property
    def tracked(self) -> int:
        """Jobs of which something is remembered."""
        return len(self._tracked)

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
        if self._core is not None:
            self._sample(self._core)
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
                self._sample(core)

    def _sample(self, core: Core) -> None:
        live = [tracked.job for tracked in self._tracked.values()]
        self._metrics.sample(core, self._fleet, live, self._facts())

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
            self._spans.pool_reloaded(pool_id, outcome, why, span_ms)

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
            context = _call_context()
            self._spans.model_verified(model_id, len(pools), context, now_ms, verified=verified)

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

    # --- trace contexts

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """W3C trace context that an attempt hands to its pool; empty for an unknown job."""
        tracked = self._tracked.get(job_id)
        if tracked is not None:
            current = tracked.job.attempt
            if current is not None and current.number == attempt:
                return dispatch_traceparent(tracked)
            return format_traceparent(tracked.trace)
        job = self._core.jobs.get(job_id) if self._core is not None else None
        return job.spec.traceparent if job is not None else ""

    def trace_id(self, job_id: str) -> str:
        """Trace id of a live or retained job, 32 hex digits; empty when there is none."""
        tracked = self._tracked.get(job_id)
        if tracked is not None:
            return f"{tracked.trace.trace_id:032x}"
        job = self._core.jobs.get(job_id) if self._core is not None else None
        context = parse_traceparent(job.spec.traceparent) if job is not None else None
        return f"{context.trace_id:032x}" if context is not None else ""

    # --- steps

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """Says what a step did. Call right after it, before anything else happens to the core."""
        self._now_ms = now_ms
        if self._core is None:
            self._attach(core, effects, now_ms)
        if core.draining and not self._draining:
            self._drained(core, now_ms)
        for effect in effects:
            self._effect(effect, effects, core, now_ms)

    def _effect(  # noqa: C901, PLR0912 - one arm per effect
        self, effect: Effect, effects: Sequence[Effect], core: Core, now_ms: int
    ) -> None:
        match effect:
            case AcceptRecord():
                self._accepted(effect, core, now_ms)
            case ReplyAccepted():
                self._answered(effect.receipt, now_ms)
            case ReplyRefused():
                self._reply_refused(effect, now_ms)
            case SendVerdicts():
                self._verdicts(effect, now_ms)
            case DispatchRecord(job_id=job_id):
                self._placed(self._tracked.get(job_id), effect, now_ms)
            case OfferDeclined(job_id=job_id):
                self._declined(self._tracked.get(job_id), effect, now_ms)
            case SendStart():
                self._sent(self._tracked.get(effect.spec.job_id), effect, now_ms)
            case JobStarted(job_id=job_id):
                self._started(self._tracked.get(job_id), effect, now_ms)
            case AttemptClosed(job_id=job_id):
                self._closed(self._tracked.get(job_id), effect, now_ms)
            case CancelUnconfirmed():
                self._lines.cancel_unconfirmed(effect)
            case SendRelease(job_id=job_id):
                self._released(self._tracked.get(job_id), effect, now_ms)
            case JobEnded(job_id=job_id):
                self._ended(self._tracked.pop(job_id, None), effect, effects, now_ms)
            case JobForgotten(job_id=job_id):
                self._forgotten(job_id, core, now_ms)
            case CatalogRecord():
                self._model_changed(effect, now_ms)
            case PoolVerified():
                self._metrics.service.digest_judged(effect.verdict, effect.engine)
                self._lines.pool_verified(effect)
            case ModelClosed():
                self._lines.model_closed(effect)
            case PoolDrainRecord():
                self._pool_drained(effect, core, now_ms)
            case _:
                pass

    def _attach(self, core: Core, effects: Sequence[Effect], now_ms: int) -> None:
        """Takes in the jobs that a journal brought back; they count as enqueued here. LO-305."""
        self._core = core
        fresh = {effect.spec.job_id for effect in effects if isinstance(effect, AcceptRecord)}
        for job in core.jobs.values():
            if job.live and job.job_id not in fresh:
                waiting_since_ms = now_ms if job.attempts_made else job.accepted_ms
                self._metrics.found(self._track(job, waiting_since_ms))

    def _track(self, job: Job, queued_ms: int, trace: SpanContext | None = None) -> Tracked:
        tracked = Tracked(
            job,
            trace or self._tracing.context(job.spec.traceparent),
            queued_ms if job.attempt is None else None,
            job.attempt.number if job.attempt is not None else 0,
        )
        self._tracked[job.job_id] = tracked
        return tracked

    def _pool_drained(self, record: PoolDrainRecord, core: Core, now_ms: int) -> None:
        pool = core.pools.get(record.pool_id)
        running = 0 if pool is None else pool.occupied()
        self._lines.pool_drained(record, running, now_ms)
        if self._spans is not None:
            self._spans.pool_drained(record, running, _call_context(), now_ms)

    def _model_changed(self, record: CatalogRecord, now_ms: int) -> None:
        self._lines.model_changed(record)
        if self._spans is not None:
            self._spans.model_changed(record, _call_context(), now_ms)

    def _drained(self, core: Core, now_ms: int) -> None:
        self._draining = True
        depth, attempts = core.queue_depth(), core.live_attempts
        self._lines.draining(depth, attempts)
        if self._spans is not None:
            self._spans.draining(depth, attempts, now_ms)

    def _accepted(self, record: AcceptRecord, core: Core, now_ms: int) -> None:
        rpc = current_rpc.get()
        trace = None
        if rpc is not None:
            rpc.accepted, trace = record.spec, rpc.context
        tracked = self._track(core.jobs[record.spec.job_id], now_ms, trace)
        tracked.queued_ms = now_ms
        if record.displaced is not None:
            self._displaced[record.spec.job_id] = record.displaced
        self._metrics.accepted(tracked)
        self._lines.accepted(tracked, record)
        if self._spans is not None:
            victim, self._gave_way = self._gave_way, None
            self._spans.accepted(tracked, record, victim, now_ms)

    def _answered(self, receipt: Receipt, now_ms: int) -> None:
        tracked = self._tracked.get(receipt.job_id)
        if receipt.duplicate:
            if self._spans is not None:
                first = tracked.trace if tracked is not None else None
                self._spans.repeated(receipt.job_id, first, _call_context(), now_ms)
        elif tracked is not None:
            tracked.told_chance = receipt.on_time_probability

    def _reply_refused(self, effect: ReplyRefused, now_ms: int) -> None:
        # Only a cancel is answered so: the job is not known. It is no rejected task.
        if effect.refusal.reason is Reason.NOT_FOUND:
            return
        rpc = current_rpc.get()
        if rpc is not None:
            rpc.refusal_counted = True
        self._reject(effect.refusal, effect.engine, now_ms)

    def _refused_by_shell(self, refusal: Refusal) -> None:
        self._reject(refusal, refusal.engine, self._now_ms)

    def _reject(self, refusal: Refusal, engine: str, now_ms: int) -> None:
        self._metrics.rejected(refusal, engine, self._core, now_ms)
        rpc = current_rpc.get()
        self._lines.rejected(refusal, engine, rpc.trace_id if rpc is not None else "")
        if self._spans is not None:
            self._spans.rejected(refusal, _call_context(), now_ms)

    def _placed(self, tracked: Tracked | None, record: DispatchRecord, now_ms: int) -> None:
        if tracked is None:
            return
        self._metrics.placed(tracked, record.decision, now_ms)
        self._lines.placed(tracked, record)
        if self._spans is not None:
            self._spans.placed(tracked, record, now_ms)
        tracked.queued_ms = None

    def _declined(self, tracked: Tracked | None, effect: OfferDeclined, now_ms: int) -> None:
        if tracked is None:
            return
        self._lines.declined(tracked, effect)
        if self._spans is not None:
            self._spans.declined(tracked, effect, now_ms)

    def _sent(self, tracked: Tracked | None, effect: SendStart, now_ms: int) -> None:
        if tracked is None:
            return
        tracked.unstarted = effect.attempt
        if self._spans is not None:
            self._spans.sent(tracked, effect, now_ms)

    def _started(self, tracked: Tracked | None, effect: JobStarted, now_ms: int) -> None:
        if tracked is None:
            return
        tracked.kv_warmth, tracked.unstarted = effect.kv_warmth, 0
        # From here on its accept is durable, so who made room for it does not come back.
        self._displaced.pop(effect.job_id, None)
        if not tracked.started:
            tracked.started = True
            self._metrics.started(tracked, now_ms)
        self._lines.started(tracked, effect.attempt, now_ms)
        if self._spans is not None:
            self._spans.started(tracked, effect, now_ms)

    def _closed(self, tracked: Tracked | None, effect: AttemptClosed, now_ms: int) -> None:
        """A retry; without one the job's end follows in the same step and says it all."""
        if tracked is None or not effect.retried:
            return
        where = tracked.where(effect.attempt)
        self._metrics.lost(tracked, where[0])
        self._lines.lost(tracked, effect, where)
        tracked.notable = True
        if self._spans is not None:
            self._spans.lost(tracked, effect, now_ms)
        tracked.queued_ms, tracked.unstarted = now_ms, 0

    def _released(self, tracked: Tracked | None, effect: SendRelease, now_ms: int) -> None:
        """Of a live job an attempt that never started is released only when its pool refused it."""
        if tracked is None or tracked.unstarted != effect.attempt:
            return
        self._lines.refused(tracked, effect.attempt)
        if self._spans is not None:
            self._spans.refused(tracked, effect.attempt, now_ms)
        tracked.queued_ms, tracked.unstarted = now_ms, 0

    def _ended(
        self,
        tracked: Tracked | None,
        effect: JobEnded,
        effects: Sequence[Effect],
        now_ms: int,
    ) -> None:
        if tracked is None:
            return
        self._metrics.ended(tracked, effect, now_ms)
        self._lines.ended(tracked, effect)
        if self._spans is not None:
            newcomer = ""
            if effect.state is JobState.DROPPED:
                newcomer = _newcomer(effects, effect.job_id)
                self._gave_way = tracked.trace
            self._spans.ended(tracked, effect, (newcomer, _call_context()), now_ms)
            keep = tracked.notable or effect.state in _NOTABLE
            self._tracing.decide(tracked.trace, keep=keep)

    def _forgotten(self, job_id: str, core: Core, now_ms: int) -> None:
        """A job that is forgotten while it lives was never accepted; who made room comes back."""
        tracked = self._tracked.pop(job_id, None)
        if tracked is not None:
            self._metrics.retracted(tracked)
            self._lines.retracted(tracked)
            if self._spans is not None:
                self._spans.retracted(tracked, now_ms)
                self._tracing.decide(tracked.trace, keep=True)
        victim = core.jobs.get(self._displaced.pop(job_id, ""))
        if victim is not None and victim.live and victim.job_id not in self._tracked:
            back = self._track(victim, now_ms)
            back.queued_ms = now_ms
            self._metrics.found(back)

    def _verdicts(self, effect: SendVerdicts, now_ms: int) -> None:
        self._lines.host_up(effect)
        self._metrics.service.host_up(effect.host_id)
        if self._spans is None:
            return
        for job_id, attempt, verdict in effect.verdicts[:VERDICT_SPANS_MAX]:
            tracked = self._tracked.get(job_id)
            if tracked is not None and verdict is not Verdict.RELEASE:
                self._spans.judged(tracked, effect, attempt, verdict.value, now_ms)


# Whoever asks why a job did not finish finds its spans, whatever the sampler said.
_NOTABLE = frozenset({JobState.FAILED, JobState.EXPIRED, JobState.DROPPED})


def _newcomer(effects: Sequence[Effect], victim_id: str) -> str:
    for effect in effects:
        if isinstance(effect, AcceptRecord) and effect.displaced == victim_id:
            return effect.spec.job_id
    return ""


def _call_context() -> SpanContext | None:
    """Context of the call that is being answered; None outside of one."""
    rpc = current_rpc.get()
    return None if rpc is None else rpc.context
