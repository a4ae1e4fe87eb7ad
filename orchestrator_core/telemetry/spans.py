"""Spans of decisions: one trace per job, from the client's span down to the engine's. Design §8.

Every span of a job is a child of the span that enqueued it, whose context is stored with the job,
so a trace goes on after a restart. Nothing is recorded per token.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from opentelemetry.trace import SpanContext

from orchestrator_core.config.live import ReloadReport
from orchestrator_core.core.effects import (
    AttemptClosed,
    JobEnded,
    JobStarted,
    OfferDeclined,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.outcome import Refusal, Usage
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
)
from orchestrator_core.core.states import JobState
from orchestrator_core.telemetry import names
from orchestrator_core.telemetry.span_attributes import (
    admission_attributes,
    decision_attributes,
    job_attributes,
    short,
    usage_attributes,
    where_attributes,
    who_attributes,
)
from orchestrator_core.telemetry.tracing import (
    Attributes,
    Tracing,
    Value,
    format_traceparent,
)
from orchestrator_core.telemetry.tracked import About, Asked, Tracked

KEYS_MAX = 16
_ENDINGS = {
    JobState.CANCELLED: names.CANCEL,
    JobState.EXPIRED: names.EXPIRE,
    JobState.DROPPED: names.DROP,
    JobState.FAILED: names.FAIL,
}


class Spans:
    """Makes the spans of the decisions. Must not be called when tracing is off."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def accepted(
        self, about: About, record: AcceptRecord, victim: SpanContext | None, now_ms: int
    ) -> None:
        """A job was accepted; `victim` is the trace of the one that gave way to it."""
        links = () if victim is None else (victim,)
        self._tracing.instant(
            names.ADMIT, about.trace, now_ms, partial(admission_attributes, about, record), links
        )

    def rejected(
        self, refusal: Refusal, call: SpanContext | None, asked: Asked, now_ms: int
    ) -> None:
        """A request was refused; `call` is the context of its span."""
        attributes: dict[str, Value] = {
            **{f"llamaorch.{key}": short(value) for key, value in asked.who.items()},
            names.VERDICT: "rejected",
            names.REASON: refusal.reason.value,
            names.POLICY_LABEL: refusal.policy_label,
        }
        if refusal.retry_after_ms is not None:
            attributes[names.RETRY_AFTER_MS] = refusal.retry_after_ms
        self._tracing.instant(names.ADMIT, call, now_ms, attributes)

    def repeated(
        self, job_id: str, first: SpanContext | None, call: SpanContext | None, now_ms: int
    ) -> None:
        """A request was answered as before; `call` is its span, `first` that of the job."""
        attributes = {names.VERDICT: "duplicate", names.JOB_ID: job_id}
        self._tracing.instant(
            names.ADMIT, call, now_ms, attributes, () if first is None else (first,)
        )

    def placed(self, tracked: Tracked, record: DispatchRecord, now_ms: int) -> None:
        """A pool was chosen: the wait is over."""
        self._waited(tracked, "placed", now_ms)
        attributes = {
            **where_attributes(record.job_id, record.attempt, record.pool_id, record.replica_id),
            **decision_attributes(record.decision),
        }
        self._tracing.instant(names.PLACE, tracked.trace, now_ms, attributes)

    def declined(self, tracked: Tracked, effect: OfferDeclined, now_ms: int) -> None:
        """A job let its first slot pass."""
        attributes: Attributes = {
            names.JOB_ID: effect.job_id,
            names.POOL_ID: effect.pool_id,
            names.HERE_MS: effect.here_ms,
            names.ELSEWHERE_MS: effect.elsewhere_ms,
        }
        self._tracing.instant(names.DECLINE, tracked.trace, now_ms, attributes)

    def sent(self, tracked: Tracked, effect: SendStart, now_ms: int) -> None:
        """An attempt goes to its pool."""
        attributes = {
            **who_attributes(About.of(tracked)),
            **where_attributes(
                effect.spec.job_id, effect.attempt, effect.pool_id, effect.replica_id
            ),
            names.HOST_ID: effect.host_id,
            names.MODE: effect.mode.value,
        }
        tracked.dispatch = span = self._tracing.start(
            names.DISPATCH, tracked.trace, now_ms, attributes, links=_tried(tracked)
        )
        tracked.tried = span.context

    def started(self, tracked: Tracked, effect: JobStarted, now_ms: int) -> None:
        """The engine took an attempt up."""
        self._dispatched(tracked, "started", now_ms)
        spec = tracked.job.spec
        attributes: dict[str, Value] = {
            **job_attributes(About.of(tracked)),
            **where_attributes(effect.job_id, effect.attempt, tracked.pool_id, tracked.replica_id),
            names.MODE: effect.mode.value,
            names.KV_WARMTH: effect.kv_warmth,
            names.QUEUE_POSITION: tracked.job.position_at_admission,
            names.GEN_AI_PROVIDER: tracked.engine,
            names.GEN_AI_MODEL: short(spec.needs.model_id),
        }
        if tracked.job.predicted_start_ms is not None:
            attributes[names.PREDICTED_START_MS] = tracked.job.predicted_start_ms
        if spec.session_id:
            attributes[names.GEN_AI_SESSION] = short(spec.session_id)
        tracked.decode = self._tracing.start(names.DECODE, tracked.trace, now_ms, attributes)

    def refused(self, tracked: Tracked, attempt: int, now_ms: int) -> None:
        """A pool did not start an attempt; the job waits again."""
        self._dispatched(tracked, "refused", now_ms, "refused")
        attributes: Attributes = {
            names.JOB_ID: tracked.job.job_id,
            names.ATTEMPT: attempt,
            names.WHY: "refused",
        }
        self._tracing.instant(names.RETRY, tracked.trace, now_ms, attributes)

    def lost(self, tracked: Tracked, effect: AttemptClosed, now_ms: int) -> None:
        """An attempt was lost and the job waits again."""
        self._dispatched(tracked, effect.why, now_ms, effect.why)
        self._decoded(tracked, effect.why, None, now_ms, effect.why)
        name = names.FAILOVER if tracked.job.delivered else names.RETRY
        attributes: Attributes = {
            names.JOB_ID: effect.job_id,
            names.ATTEMPT: effect.attempt,
            names.WHY: effect.why,
        }
        self._tracing.instant(name, tracked.trace, now_ms, attributes)

    def ended(
        self,
        tracked: Tracked,
        effect: JobEnded,
        newcomer: tuple[str, SpanContext | None],
        now_ms: int,
    ) -> None:
        """A job reached its terminal state; a dropped one gave way to `newcomer` (id, trace)."""
        error = effect.outcome.error
        reason = error.reason.value if error else ""
        self._waited(tracked, effect.state.value, now_ms)
        self._dispatched(tracked, effect.state.value, now_ms, reason)
        finish = effect.outcome.finish.value if effect.outcome.finish else ""
        self._decoded(tracked, effect.state.value, effect.usage, now_ms, reason, finish)
        name = _ENDINGS.get(effect.state)
        if name is None:
            return
        attributes: dict[str, Value] = {
            **who_attributes(About.of(tracked)),
            names.POOL_ID: tracked.pool_id,
            names.REPLICA_ID: tracked.replica_id,
            names.REASON: reason,
            names.WHY: effect.why,
        }
        if tracked.job.attempt is not None:
            attributes[names.ATTEMPT] = tracked.job.attempt.number
        if effect.usage.queue_time_ms is not None:
            attributes[names.QUEUE_TIME_MS] = effect.usage.queue_time_ms
        links: Sequence[SpanContext] = ()
        if newcomer[0]:
            attributes[names.DISPLACED_BY] = newcomer[0]
            links = () if newcomer[1] is None else (newcomer[1],)
        self._tracing.instant(name, tracked.trace, now_ms, attributes, links)

    def retracted(self, tracked: Tracked, now_ms: int) -> None:
        """An accept never became durable."""
        self._waited(tracked, "retracted", now_ms)
        self._dispatched(tracked, "retracted", now_ms, "retracted")
        attributes = {names.JOB_ID: tracked.job.job_id}
        self._tracing.instant(names.RETRACT, tracked.trace, now_ms, attributes)

    def judged(
        self, tracked: Tracked, effect: SendVerdicts, attempt: int, verdict: str, now_ms: int
    ) -> None:
        """A host that registered again still held an attempt of a live job."""
        attributes: Attributes = {
            names.JOB_ID: tracked.job.job_id,
            names.ATTEMPT: attempt,
            names.HOST_ID: effect.host_id,
            names.VERDICT: verdict,
        }
        self._tracing.instant(names.ADOPT, tracked.trace, now_ms, attributes)

    def draining(self, queue_depth: int, live_attempts: int, now_ms: int) -> None:
        """Nothing is accepted or placed any more."""
        attributes = {names.QUEUE_DEPTH: queue_depth, names.LIVE_ATTEMPTS: live_attempts}
        self._tracing.instant(names.DRAIN, None, now_ms, attributes)

    def pool_drained(
        self, record: PoolDrainRecord, running: int, call: SpanContext | None, now_ms: int
    ) -> None:
        """An operator drains a pool, or does not any more; `call` is the context of its span."""
        attributes: Attributes = {
            names.POOL_ID: record.pool_id,
            names.VERDICT: "over" if record.over else "begun",
            names.LIVE_ATTEMPTS: running,
            names.DRAIN_LEFT_MS: max(0, record.until_ms - now_ms),
        }
        self._decided(names.DRAIN, call, (now_ms, now_ms), attributes)

    def model_changed(self, record: CatalogRecord, call: SpanContext | None, now_ms: int) -> None:
        """The catalog was changed; `call` is the context of the change's span."""
        attributes: Attributes = {
            names.MODEL_ID: record.entry.card.model_id,
            names.CHANGE: record.change.value,
            names.REVISION: record.entry.revision,
        }
        self._decided(names.CATALOG, call, (now_ms, now_ms), attributes)

    def model_verified(
        self, model_id: str, pools: int, call: SpanContext | None, now_ms: int, *, verified: bool
    ) -> None:
        """A model was compared with what pools report; `call` is the context of its span."""
        attributes: Attributes = {
            names.MODEL_ID: model_id,
            names.VERIFIED: verified,
            names.POOLS: pools,
        }
        self._decided(names.VERIFY, call, (now_ms, now_ms), attributes)

    def pool_reloaded(
        self,
        pool_id: str,
        outcome: str,
        why: str,
        call: SpanContext | None,
        span_ms: tuple[int, int],
    ) -> None:
        """A pool was reloaded, or was not; `span_ms` is from the command to its end."""
        attributes: Attributes = {
            names.POOL_ID: pool_id,
            names.OUTCOME: outcome,
            names.WHY: short(why),
        }
        self._decided(names.RELOAD, call, span_ms, attributes)

    def outbound_decided(
        self, told: Mapping[str, str | bool], call: SpanContext | None, now_ms: int
    ) -> None:
        """A client's tool may connect to a host, or may not; `call` is its caller's context."""
        attributes: dict[str, Value] = {
            f"llamaorch.{key}": short(value) if isinstance(value, str) else value
            for key, value in told.items()
        }
        span = self._tracing.start(names.OUTBOUND, call, now_ms, attributes)
        self._tracing.end(span, now_ms)
        self._tracing.decide(span.context, keep=True)

    def config_reloaded(self, report: ReloadReport, now_ms: int) -> None:
        """The configuration was read again."""
        attributes: Attributes = {
            names.OUTCOME: report.outcome,
            names.CHANGED_KEYS: tuple(each.key for each in report.applied[:KEYS_MAX]),
            names.WAITING_KEYS: tuple(each.key for each in report.waiting[:KEYS_MAX]),
            names.WHY: short("; ".join(report.problems)),
        }
        self._tracing.instant(names.CONFIG_RELOAD, None, now_ms, attributes)

    def _decided(
        self,
        name: str,
        call: SpanContext | None,
        span_ms: tuple[int, int],
        attributes: Attributes,
    ) -> None:
        """What an operator decided, under the span of the `call`: rare, and always told with it."""
        span = self._tracing.start(name, call, span_ms[0], attributes)
        self._tracing.end(span, span_ms[1])
        if call is not None:
            self._tracing.decide(call, keep=True)

    def _waited(self, tracked: Tracked, outcome: str, now_ms: int) -> None:
        """The wait is made into a span when it is over, with both instants given."""
        if tracked.queued_ms is None:
            return
        attributes: dict[str, Value] = {
            names.JOB_ID: tracked.job.job_id,
            names.OUTCOME: outcome,
            names.QUEUE_TIME_MS: now_ms - tracked.queued_ms,
        }
        if tracked.job.spec.session_id:
            attributes[names.SESSION_ID] = short(tracked.job.spec.session_id)
        span = self._tracing.start(
            names.QUEUE_WAIT, tracked.trace, tracked.queued_ms, attributes, links=_tried(tracked)
        )
        self._tracing.end(span, now_ms)

    def _dispatched(self, tracked: Tracked, outcome: str, now_ms: int, error: str = "") -> None:
        span, tracked.dispatch = tracked.dispatch, None
        if span is not None:
            self._tracing.end(span, now_ms, {names.OUTCOME: outcome}, error)

    def _decoded(
        self,
        tracked: Tracked,
        outcome: str,
        usage: Usage | None,
        now_ms: int,
        error: str,
        finish: str = "",
    ) -> None:
        span, tracked.decode = tracked.decode, None
        if span is not None:
            attributes = {names.OUTCOME: outcome, **usage_attributes(usage)}
            if finish:
                attributes[names.GEN_AI_FINISH] = [finish]
            self._tracing.end(span, now_ms, attributes, error)


def dispatch_traceparent(tracked: Tracked) -> str:
    """Context that an attempt hands to its pool: the dispatch span's, else the job's own."""
    if tracked.dispatch is not None:
        return format_traceparent(tracked.dispatch.context)
    return format_traceparent(tracked.trace)


def _tried(tracked: Tracked) -> Sequence[SpanContext]:
    """The attempt before, for what follows it."""
    return () if tracked.tried is None else (tracked.tried,)
