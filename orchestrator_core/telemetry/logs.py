"""Log lines: one JSON object each, with a constant event name. HME-030, ORCH-3027, ORCH-3300.

A significant event has a sentence for people under `human`. Prompts, output, payloads and secrets
never appear. ORCH-3302.
"""

import logging
from collections.abc import Mapping

import structlog
from structlog.typing import FilteringBoundLogger

from orchestrator_core.config.live import ReloadReport
from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.effects import (
    AttemptClosed,
    CancelUnconfirmed,
    JobEnded,
    ModelClosed,
    OfferDeclined,
    PoolVerified,
    SendVerdicts,
    Verdict,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
)
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.core.states import JobState
from orchestrator_core.telemetry.line_sink import Late
from orchestrator_core.telemetry.names import SERVICE
from orchestrator_core.telemetry.sentences import ending, reloaded
from orchestrator_core.telemetry.tracked import About, Asked, Tracked, found_by

MESSAGE_MAX = 300
# Of a change of the configuration, under one key.
CHANGES_MAX = 100
# Of a request that cannot be read.
FIELDS_MAX = 16
# Their messages are an engine's, which may quote what the client sent: only the client gets them.
_QUOTING = frozenset({Reason.ENGINE_ERROR, Reason.WORKER_RESET, Reason.REPLICA_EXHAUSTED})
# They tell what the client sent; and a throttle's names its client.
_TELLING_ASKED = _QUOTING | {Reason.INVALID_PARAMS, Reason.INTERNAL}
_VERDICTS = {
    DigestVerdict.MATCH: "Pool {pool_id} reports the digest of {model_id} that the catalog states.",
    DigestVerdict.MISMATCH: "Pool {pool_id} reports another digest of {model_id} than the catalog "
    "states, and gets none of its jobs.",
    DigestVerdict.UNKNOWN: "Pool {pool_id} reports no digest of {model_id} to compare with the "
    "catalog's.",
}


class Lines:
    """Writes what happened to jobs and hosts."""

    def __init__(self, log: FilteringBoundLogger | None = None) -> None:
        self._own = log is None
        self._log: FilteringBoundLogger = log or structlog.get_logger(SERVICE).bind()

    def level_changed(self) -> None:
        """Another level was set: the logger, which is made once, has the former one."""
        if self._own:
            self._log = structlog.get_logger(SERVICE).bind()

    def accepted(self, about: About, record: AcceptRecord) -> None:
        """A request became a job."""
        self._log.info("job_accepted", late=Late(_accepted, about, record))

    def rejected(self, refusal: Refusal, engine: str, asked: Asked) -> None:
        """A request was refused. What its client sent is not quoted; fields are named."""
        keys: dict[str, object] = {**asked.who, "trace_id": asked.trace_id, "engine": engine}
        if refusal.violations:
            # Without the keys of labels, which are the client's.
            fields = [each.field.partition("[")[0] for each in refusal.violations[:FIELDS_MAX]]
            keys["fields"] = list(dict.fromkeys(fields))
        why = refusal.reason.value
        if refusal.policy_label:
            why += f" ({refusal.policy_label})"
        if refusal.reason not in _TELLING_ASKED and not refusal.policy_label.startswith("throttle"):
            keys["error"] = refusal.message[:MESSAGE_MAX]
            why += f": {refusal.message[:MESSAGE_MAX]}"
        model = "" if asked.spec is None else f" for {asked.spec.needs.model_id}"
        self._log.info(
            "job_rejected",
            **keys,
            reason=refusal.reason.value,
            policy_label=refusal.policy_label,
            retry_after_ms=refusal.retry_after_ms,
            human=f"A job{model} was rejected: {why}.",
        )

    def placed(self, tracked: Tracked, record: DispatchRecord) -> None:
        """A pool was chosen."""
        self._log.info(
            "job_placed",
            **_who(About.of(tracked)),
            attempt=record.attempt,
            host_id=record.host_id,
            decided_by=record.decision.decided_by,
            candidates_total=record.decision.candidates_total,
            exclusions_total=record.decision.exclusions_total,
            human=f"Job {record.job_id} goes to pool {record.pool_id}, the choice of "
            f"{record.decision.candidates_total}.",
        )

    def declined(self, tracked: Tracked, effect: OfferDeclined) -> None:
        """A job let its first slot pass."""
        self._log.info(
            "offer_declined",
            **_who(About.of(tracked)),
            offered_pool_id=effect.pool_id,
            here_ms=effect.here_ms,
            elsewhere_ms=effect.elsewhere_ms,
            human=f"Job {effect.job_id} waits for a faster pool than {effect.pool_id}.",
        )

    def started(self, tracked: Tracked, attempt: int, now_ms: int) -> None:
        """The engine took an attempt up."""
        job = tracked.job
        waited_ms = now_ms - job.accepted_ms
        self._log.info(
            "job_started",
            **_who(About.of(tracked)),
            attempt=attempt,
            queue_position=job.position_at_admission,
            predicted_start_ms=job.predicted_start_ms,
            kv_warmth=tracked.kv_warmth,
            human=f"Job {job.job_id} runs on pool {tracked.pool_id}, {waited_ms} ms after it was "
            "accepted.",
        )

    def refused(self, tracked: Tracked, attempt: int) -> None:
        """A pool did not start an attempt."""
        self._log.warning(
            "attempt_refused",
            **_who(About.of(tracked)),
            attempt=attempt,
            human=f"A pool refused job {tracked.job.job_id}; it waits again at its old place.",
        )

    def lost(self, tracked: Tracked, effect: AttemptClosed, where: tuple[str, str]) -> None:
        """An attempt was lost at `where` (pool, replica) and is tried again."""
        pool_id, replica_id = where
        self._log.warning(
            "job_retried",
            **{**_who(About.of(tracked)), "pool_id": pool_id, "replica_id": replica_id},
            attempt=effect.attempt,
            why=effect.why,
            human=f"Job {effect.job_id} lost its pool {pool_id} and waits for another try.",
        )

    def cancel_unconfirmed(self, effect: CancelUnconfirmed, spec: JobSpec) -> None:
        """A host does not confirm that it stopped an attempt."""
        self._log.error(
            "cancel_unconfirmed",
            **found_by(spec),
            attempt=effect.attempt,
            pool_id=effect.pool_id,
            human=f"Pool {effect.pool_id} does not confirm that job {effect.job_id} was stopped:"
            " it gets no more jobs until it does. Look at the log of its pool-managerd.",
        )

    def ended(self, tracked: Tracked, effect: JobEnded) -> None:
        """A job reached its terminal state."""
        usage, outcome = effect.usage, effect.outcome
        error = outcome.error
        keys = {
            "queue_position": tracked.job.position_at_admission,
            "predicted_start_ms": tracked.job.predicted_start_ms,
            "predicted_end_ms": tracked.job.predicted_end_ms,
            "kv_warmth": tracked.kv_warmth,
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
            "queue_time_ms": usage.queue_time_ms,
            "first_token_ms": usage.first_token_ms,
            "decode_time_ms": usage.decode_time_ms,
            "outcome": effect.state.value,
            "finish": outcome.finish.value if outcome.finish else None,
            "reason": error.reason.value if error else None,
            "why": effect.why,
        }
        if error is not None and error.reason not in _QUOTING:
            keys["error"] = error.message[:MESSAGE_MAX]
        level = logging.WARNING if effect.state is JobState.FAILED else logging.INFO
        self._log.log(
            level,
            f"job_{effect.state.value}",
            **_who(About.of(tracked)),
            **keys,
            human=ending(effect),
        )

    def retracted(self, tracked: Tracked) -> None:
        """The journal refused an accept."""
        job_id = tracked.job.job_id
        self._log.warning(
            "job_retracted",
            **_who(About.of(tracked)),
            human=f"The journal could not be written, so job {job_id} was never accepted.",
        )

    def host_up(self, effect: SendVerdicts) -> None:
        """A host registered."""
        kept = sum(verdict is Verdict.ADOPT for _, _, verdict in effect.verdicts)
        held = len(effect.verdicts)
        self._log.info(
            "host_up",
            host_id=effect.host_id,
            attempts_held=held,
            attempts_adopted=kept,
            human=f"Host {effect.host_id} is connected; {kept} of the {held} attempts that it "
            "holds go on.",
        )
        for pool_id, why in effect.refused:
            self._log.error(
                "pool_refused",
                host_id=effect.host_id,
                pool_id=pool_id,
                why=why,
                human=f"Pool {pool_id} of host {effect.host_id} gets no jobs: {why}.",
            )

    def host_down(self, host_id: str, why: str) -> None:
        """The stream of a host ended."""
        self._log.warning(
            "host_down",
            host_id=host_id,
            why=why,
            human=f"Host {host_id} is gone: {why}. Its jobs wait for it to come back.",
        )

    def pool_drained(self, record: PoolDrainRecord, running: int, now_ms: int) -> None:
        """An operator drains a pool, or does not any more."""
        left_ms = max(0, record.until_ms - now_ms)
        told = (
            f"no more jobs until `llorch undrain {record.pool_id}`; the {running} that run there "
            f"have {left_ms / 1000:.0f} s to end"
        )
        self._log.info(
            "pool_drain_over" if record.over else "pool_drain",
            pool_id=record.pool_id,
            live_attempts=running,
            left_ms=left_ms,
            human=f"Pool {record.pool_id} gets {'jobs again' if record.over else told}.",
        )

    def model_changed(self, record: CatalogRecord) -> None:
        """The catalog was changed."""
        entry, change = record.entry, record.change.value
        model_id = entry.card.model_id
        self._log.info(
            "model_changed",
            change=change,
            model_id=model_id,
            aliases=list(entry.card.aliases),
            digest=entry.card.digest,
            revision=entry.revision,
            replaced_by=entry.replaced_by,
            human=f"Model {model_id} of the catalog was {change}.",
        )

    def pool_verified(self, effect: PoolVerified) -> None:
        """What a pool reports was compared with the catalog."""
        pool_id, model_id, verdict = effect.pool_id, effect.model_id, effect.verdict
        log = self._log.error if verdict is DigestVerdict.MISMATCH else self._log.info
        log(
            "pool_digest",
            pool_id=pool_id,
            model_id=model_id,
            engine=effect.engine,
            verdict=verdict.value,
            human=_VERDICTS[verdict].format(pool_id=pool_id, model_id=model_id),
        )

    def model_closed(self, effect: ModelClosed) -> None:
        """The grace of a retired model is over."""
        pools = ", ".join(effect.pool_ids) or "what serves it"
        self._log.info(
            "model_closed",
            model_id=effect.model_id,
            pool_ids=list(effect.pool_ids),
            jobs_failed=effect.jobs_failed,
            human=f"The grace of model {effect.model_id} is over: {pools} takes no more work, and "
            f"{effect.jobs_failed} jobs that waited for it failed.",
        )

    def model_verified(self, model_id: str, pools: int, *, verified: bool) -> None:
        """Somebody had a model compared with what pools report."""
        self._log.info(
            "model_verified" if verified else "model_not_verified",
            model_id=model_id,
            pools=pools,
            human=f"Model {model_id} is {'' if verified else 'not '}verified on {pools} pools.",
        )

    def signature_unsure(self, model_id: str, verdict: str) -> None:
        """Nobody vouches for the digest of a model."""
        self._log.warning(
            "model_signature",
            model_id=model_id,
            verdict=verdict,
            human=f"The signature of model {model_id} is {verdict}.",
        )

    def pool_reloaded(self, pool_id: str, outcome: str, why: str) -> None:
        """A pool was reloaded, or was not."""
        told = f": {why}" if why else "."
        self._log.info(
            "pool_reload",
            pool_id=pool_id,
            outcome=outcome,
            why=why,
            human=f"The reload of pool {pool_id} is {outcome.replace('_', ' ')}{told}",
        )

    def outbound_decided(self, told: Mapping[str, str | bool], why: str) -> None:
        """A client's tool may connect to a host, or may not; `why` is empty if it may."""
        self._log.info(
            "outbound_decision",
            **told,
            human=why or f"Connecting to {told['remote_host']} is allowed.",
        )

    def config_reloaded(self, report: ReloadReport) -> None:
        """The configuration was read again."""
        log = self._log.warning if report.problems or report.waiting else self._log.info
        log(
            "config_reload",
            outcome=report.outcome,
            file=report.file,
            changed=[each.told() for each in report.applied[:CHANGES_MAX]],
            needs_restart=[each.told() for each in report.waiting[:CHANGES_MAX]],
            changed_total=len(report.applied),
            needs_restart_total=len(report.waiting),
            problems=list(report.problems),
            human=reloaded(report),
        )

    def draining(self, queue_depth: int, live_attempts: int) -> None:
        """Nothing is accepted or placed any more."""
        self._log.info(
            "drain_started",
            queue_depth=queue_depth,
            live_attempts=live_attempts,
            human=f"No more jobs are accepted; {live_attempts} still run, {queue_depth} wait for "
            "the next start.",
        )


def _accepted(about: About, record: AcceptRecord) -> dict[str, object]:
    spec = record.spec
    return {
        **_who(about),
        "queue_position": record.position,
        "predicted_start_ms": record.predicted_start_ms,
        "predicted_end_ms": record.predicted_end_ms,
        "human": f"Job {spec.job_id} for {spec.needs.model_id} was accepted at position "
        f"{record.position}.",
    }


def _who(about: About) -> dict[str, object]:
    """The keys that every line about a job has. ORCH-3027."""
    spec = about.spec
    return {
        "job_id": spec.job_id,
        "session_id": spec.session_id,
        "correlation_id": spec.correlation_id,
        "trace_id": f"{about.trace.trace_id:032x}",
        "priority": about.priority,
        "model_id": spec.needs.model_id,
        "engine": about.engine,
        "engine_version": about.engine_version,
        "pool_id": about.pool_id,
        "replica_id": about.replica_id,
        "quant": spec.needs.quantization,
        "ctx": spec.needs.required_ctx,
    }
