"""Attributes of spans: what is said of a job, an attempt, a decision and usage. Design §8."""

from collections import Counter

from orchestrator_core.core.decision import Decision
from orchestrator_core.core.outcome import Usage
from orchestrator_core.core.records import AcceptRecord
from orchestrator_core.telemetry import names
from orchestrator_core.telemetry.tracing import Attributes, Value
from orchestrator_core.telemetry.tracked import About

TEXT_MAX = 256
CANDIDATES_MAX = 5


def who_attributes(about: About) -> dict[str, Value]:
    """What is known; what is not said is left out. ORCH-3027."""
    spec = about.spec
    attributes: dict[str, Value] = {
        names.JOB_ID: spec.job_id,
        names.MODEL_ID: short(spec.needs.model_id),
    }
    if spec.session_id:
        attributes[names.SESSION_ID] = short(spec.session_id)
    if about.engine:
        attributes[names.ENGINE] = short(about.engine)
    if about.engine_version:
        attributes[names.ENGINE_VERSION] = short(about.engine_version)
    return attributes


def job_attributes(about: About) -> dict[str, Value]:
    """All of a job that its client chose. ORCH-3027."""
    spec = about.spec
    attributes = who_attributes(about)
    attributes[names.PRIORITY] = about.priority
    if spec.needs.quantization:
        attributes[names.QUANT] = short(spec.needs.quantization)
    if spec.correlation_id:
        attributes[names.CORRELATION_ID] = short(spec.correlation_id)
    if spec.needs.required_ctx is not None:
        attributes[names.CTX] = spec.needs.required_ctx
    return attributes


def admission_attributes(about: About, record: AcceptRecord) -> Attributes:
    """What a job was accepted with."""
    attributes = job_attributes(about)
    attributes[names.VERDICT] = "accepted"
    attributes[names.QUEUE_POSITION] = record.position
    if record.spec.request_id:
        attributes[names.REQUEST_ID] = short(record.spec.request_id)
    if record.displaced is not None:
        attributes[names.DISPLACED] = record.displaced
    if record.predicted_start_ms is not None:
        attributes[names.PREDICTED_START_MS] = record.predicted_start_ms
    if record.predicted_end_ms is not None:
        attributes[names.PREDICTED_END_MS] = record.predicted_end_ms
    return attributes


def where_attributes(job_id: str, attempt: int, pool_id: str, replica_id: str) -> dict[str, Value]:
    """Which attempt, and where it runs."""
    return {
        names.JOB_ID: job_id,
        names.ATTEMPT: attempt,
        names.POOL_ID: pool_id,
        names.REPLICA_ID: replica_id,
    }


def decision_attributes(decision: Decision) -> dict[str, Value]:
    """The record of a placement, small: the best candidates and how many failed on what."""
    best = decision.candidates[:CANDIDATES_MAX]
    lacking = Counter(
        reason
        for exclusion in decision.exclusions
        for reason in {shortfall.reason for shortfall in exclusion.shortfalls}
    )
    return {
        names.DECIDED_BY: decision.decided_by,
        names.RULES_VERSION: decision.rules_version,
        names.CANDIDATES_TOTAL: decision.candidates_total,
        names.EXCLUSIONS_TOTAL: decision.exclusions_total,
        names.DECLINED_OFFERS: decision.declined_offers,
        names.CANDIDATE_POOLS: [candidate.pool_id for candidate in best],
        names.CANDIDATE_SCORES: [candidate.predicted_end_ms for candidate in best],
        names.CANDIDATE_VERSIONS: [candidate.snapshot_version for candidate in best],
        names.CANDIDATE_AGES: [candidate.snapshot_age_ms for candidate in best],
        **{names.EXCLUDED[reason]: count for reason, count in lacking.items()},
    }


def usage_attributes(usage: Usage | None) -> dict[str, Value]:
    """What a job took, as far as it is known."""
    if usage is None:
        return {}
    known = {
        names.TOKENS_IN: usage.tokens_in,
        names.TOKENS_OUT: usage.tokens_out,
        names.QUEUE_TIME_MS: usage.queue_time_ms,
        names.FIRST_TOKEN_MS: usage.first_token_ms,
        names.DECODE_TIME_MS: usage.decode_time_ms,
        names.GEN_AI_TOKENS_IN: usage.tokens_in,
        names.GEN_AI_TOKENS_OUT: usage.tokens_out,
    }
    return {key: value for key, value in known.items() if value is not None}


def short(text: str) -> str:
    """Text of others, cut to `TEXT_MAX` characters."""
    return text[:TEXT_MAX]
