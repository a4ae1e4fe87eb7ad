"""Sees every step of the core, says what happened. Design §8.

`observe` is called with the effects of each step and never waits. It looks only at effects that
change something for a job; token output does not come by here.
"""

from collections.abc import Sequence

from opentelemetry.trace import SpanContext

from orchestrator_core.core.effects import (
    AttemptClosed,
    CancelUnconfirmed,
    Effect,
    JobEnded,
    JobForgotten,
    JobStarted,
    ModelClosed,
    OfferDeclined,
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
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
)
from orchestrator_core.core.states import JobState
from orchestrator_core.telemetry.calls import call_context, current_rpc, operator_context
from orchestrator_core.telemetry.logs import Lines
from orchestrator_core.telemetry.metrics import Metrics
from orchestrator_core.telemetry.spans import Spans, dispatch_traceparent
from orchestrator_core.telemetry.tracing import Tracing, format_traceparent, parse_traceparent
from orchestrator_core.telemetry.tracked import About, Asked, Tracked

# Verdicts of one registration that get a span of their own; the log line counts them all.
VERDICT_SPANS_MAX = 256


class StepObserver:
    """Derives spans, metrics and log lines from what the core decides. `spans` is None without any.

    Owns the state of live jobs; it is freed when a job ends or is forgotten.
    """

    def __init__(
        self, tracing: Tracing, spans: Spans | None, metrics: Metrics, lines: Lines
    ) -> None:
        self._tracing = tracing
        self._spans = spans
        self._metrics = metrics
        self._lines = lines
        self.core: Core | None = None
        self._tracked: dict[str, Tracked] = {}
        self._displaced: dict[str, str] = {}
        # The trace of a job that was dropped in this step, for the one that it made room for.
        self._gave_way: SpanContext | None = None
        self._draining = False
        self._now_ms = 0

    @property
    def tracked(self) -> int:
        """Jobs of which something is remembered."""
        return len(self._tracked)

    # --- trace contexts

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """W3C trace context that an attempt hands to its pool; empty for an unknown job."""
        tracked = self._tracked.get(job_id)
        if tracked is not None:
            current = tracked.job.attempt
            if current is not None and current.number == attempt:
                return dispatch_traceparent(tracked)
            return format_traceparent(tracked.trace)
        job = self.core.jobs.get(job_id) if self.core is not None else None
        return job.spec.traceparent if job is not None else ""

    def trace_id(self, job_id: str) -> str:
        """Trace id of a live or retained job, 32 hex digits; empty when there is none."""
        tracked = self._tracked.get(job_id)
        if tracked is not None:
            return f"{tracked.trace.trace_id:032x}"
        job = self.core.jobs.get(job_id) if self.core is not None else None
        context = parse_traceparent(job.spec.traceparent) if job is not None else None
        return f"{context.trace_id:032x}" if context is not None else ""

    # --- steps

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """Says what a step did. Call right after it, before anything else happens to the core."""
        self._now_ms = now_ms
        if self.core is None:
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
                self._lines.cancel_unconfirmed(effect, core.jobs[effect.job_id].spec)
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
        self.core = core
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
            self._spans.pool_drained(record, running, operator_context(), now_ms)

    def _model_changed(self, record: CatalogRecord, now_ms: int) -> None:
        self._lines.model_changed(record)
        if self._spans is not None:
            self._spans.model_changed(record, operator_context(), now_ms)

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
        about = About.of(tracked)
        self._lines.accepted(about, record)
        if self._spans is not None:
            victim, self._gave_way = self._gave_way, None
            self._spans.accepted(about, record, victim, now_ms)

    def _answered(self, receipt: Receipt, now_ms: int) -> None:
        tracked = self._tracked.get(receipt.job_id)
        if receipt.duplicate:
            if self._spans is not None:
                first = tracked.trace if tracked is not None else None
                self._spans.repeated(receipt.job_id, first, call_context(), now_ms)
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

    def refused_by_shell(self, refusal: Refusal) -> None:
        """A call was refused before it came to the core."""
        self._reject(refusal, refusal.engine, self._now_ms)

    def _reject(self, refusal: Refusal, engine: str, now_ms: int) -> None:
        self._metrics.rejected(refusal, engine, self.core, now_ms)
        rpc = current_rpc.get()
        asked = Asked() if rpc is None else Asked(rpc.trace_id, rpc.correlation_id, rpc.asked)
        self._lines.rejected(refusal, engine, asked)
        if self._spans is not None:
            self._spans.rejected(refusal, call_context(), asked, now_ms)

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
            self._spans.ended(tracked, effect, (newcomer, call_context()), now_ms)
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
