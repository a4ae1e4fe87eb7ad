# SPDX-License-Identifier: Apache-2.0
"""From the wire's messages to this package's types. The other direction is in `wire_request`."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from llamaorch.orchestrator.v1 import (
    decision_pb2,
    events_pb2,
    job_pb2,
    orchestrator_service_pb2,
    policy_service_pb2,
    session_service_pb2,
)
from llamaorch_client import events, model
from llamaorch_client.errors import ErrorDetail, detail_of
from llamaorch_client.request import Budgets, Priority

EnumT = TypeVar("EnumT", bound=StrEnum)


def enum(kind: type[EnumT], file: FileDescriptor, value: int) -> EnumT:
    """A value of a proto enum as the Python enum of the same name.

    Its values' names lack their common prefix. A value that a newer server sends is not an error:
    it reads as the first member.
    """
    values = file.enum_types_by_name[kind.__name__].values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    name = values[value].name.removeprefix(prefix) if value in values else ""
    return kind[name] if name in kind.__members__ else next(iter(kind))


def instant(message: Timestamp, present: bool) -> datetime | None:
    """An instant in UTC; None when it is not present."""
    return message.ToDatetime(UTC) if present else None


def outcome(status: status_pb2.Status) -> ErrorDetail:
    """The error of a job that failed, expired or was dropped."""
    return detail_of(status)


def budgets(message: job_pb2.Budgets) -> Budgets:
    """What is left of the budgets."""
    return Budgets(
        tokens=message.tokens if message.HasField("tokens") else None,
        time_ms=message.time_ms if message.HasField("time_ms") else None,
        cost_micros=message.cost_micros if message.HasField("cost_micros") else None,
    )


def session(message: session_service_pb2.Session) -> model.Session:
    """One session."""
    return model.Session(
        session_id=message.session_id,
        opened_at=instant(message.opened_at, message.HasField("opened_at")),
        used_at=instant(message.used_at, message.HasField("used_at")),
        expires_at=instant(message.expires_at, message.HasField("expires_at")),
        turns=message.turns,
        turns_max=message.turns_max,
        budgets=budgets(message.budgets) if message.HasField("budgets") else None,
        spent=budgets(message.spent),
        reserved=budgets(message.reserved),
        remaining=budgets(message.remaining) if message.HasField("remaining") else None,
        job_ids=tuple(message.job_ids),
        warm_pool_id=message.warm_pool_id,
        kv_tokens=message.kv_tokens if message.HasField("kv_tokens") else None,
    )


def usage(message: job_pb2.Usage) -> model.Usage:
    """What a job took."""
    return model.Usage(
        tokens_in=message.tokens_in if message.HasField("tokens_in") else None,
        tokens_out=message.tokens_out if message.HasField("tokens_out") else None,
        queue_time_ms=message.queue_time_ms if message.HasField("queue_time_ms") else None,
        first_token_ms=message.first_token_ms if message.HasField("first_token_ms") else None,
        decode_time_ms=message.decode_time_ms if message.HasField("decode_time_ms") else None,
    )


def _finish_reason(value: int) -> model.FinishReason:
    return enum(model.FinishReason, job_pb2.DESCRIPTOR, value)


def _state(value: int) -> model.JobState:
    return enum(model.JobState, job_pb2.DESCRIPTOR, value)


def job(message: job_pb2.Job) -> model.Job:
    """One job."""
    return model.Job(
        job_id=message.job_id,
        state=_state(message.state),
        priority=enum(Priority, job_pb2.DESCRIPTOR, message.priority),
        engine=message.engine,
        model_id=message.model_id,
        session_id=message.session_id,
        accepted_at=instant(message.accepted_at, message.HasField("accepted_at")),
        started_at=instant(message.started_at, message.HasField("started_at")),
        ended_at=instant(message.ended_at, message.HasField("ended_at")),
        queue_position=message.queue_position if message.HasField("queue_position") else None,
        predicted_start_ms=(
            message.predicted_start_ms if message.HasField("predicted_start_ms") else None
        ),
        predicted_end_ms=message.predicted_end_ms if message.HasField("predicted_end_ms") else None,
        attempt=message.attempt,
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        finish_reason=_finish_reason(message.finish_reason),
        error=detail_of(message.error) if message.HasField("error") else None,
        usage=usage(message.usage),
        trace_id=message.trace_id,
        labels=dict(message.labels),
        on_time_probability=(
            message.on_time_probability if message.HasField("on_time_probability") else None
        ),
        output_pieces=message.output_pieces if message.HasField("output_pieces") else None,
        expected_tokens=message.expected_tokens if message.HasField("expected_tokens") else None,
        from_catalog=(
            from_catalog(message.from_catalog) if message.HasField("from_catalog") else None
        ),
    )


def from_catalog(message: job_pb2.FromCatalog) -> model.FromCatalog:
    """What the catalog added to a job."""
    return model.FromCatalog(message.alias, message.revision, dict(message.filled))


def receipt(
    message: orchestrator_service_pb2.EnqueueResponse, request_id: str, correlation_id: str
) -> model.Receipt:
    """The answer to an accepted job."""
    return model.Receipt(
        job_id=message.job_id,
        request_id=request_id,
        queue_position=message.queue_position,
        predicted_start_ms=(
            message.predicted_start_ms if message.HasField("predicted_start_ms") else None
        ),
        predicted_end_ms=message.predicted_end_ms if message.HasField("predicted_end_ms") else None,
        on_time_probability=(
            message.on_time_probability if message.HasField("on_time_probability") else None
        ),
        backoff_ms=message.backoff_ms,
        remaining=budgets(message.remaining) if message.HasField("remaining") else None,
        seed=message.seed,
        duplicate=message.duplicate,
        from_catalog=(
            from_catalog(message.from_catalog) if message.HasField("from_catalog") else None
        ),
        correlation_id=correlation_id,
    )


def queued(message: events_pb2.Queued) -> events.Queued:
    """A waiting job's place."""
    return events.Queued(
        queue_position=message.queue_position,
        predicted_start_ms=(
            message.predicted_start_ms if message.HasField("predicted_start_ms") else None
        ),
        predicted_end_ms=message.predicted_end_ms if message.HasField("predicted_end_ms") else None,
        on_time_probability=(
            message.on_time_probability if message.HasField("on_time_probability") else None
        ),
    )


def started(message: events_pb2.Started) -> events.Started:
    """Where a job runs."""
    return events.Started(
        queue_position=message.queue_position,
        predicted_start_ms=(
            message.predicted_start_ms if message.HasField("predicted_start_ms") else None
        ),
        queue_time_ms=message.queue_time_ms,
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        attempt=message.attempt,
        kv_warmth=message.kv_warmth,
        seed=message.seed,
        engine=message.engine,
        engine_version=message.engine_version,
    )


def metrics(message: events_pb2.Metrics) -> events.Metrics:
    """How a job is doing."""
    return events.Metrics(
        queue_depth=message.queue_depth,
        on_time_probability=(
            message.on_time_probability if message.HasField("on_time_probability") else None
        ),
        kv_warmth=message.kv_warmth,
        remaining=budgets(message.remaining) if message.HasField("remaining") else None,
        kv_migrated=message.kv_migrated,
    )


def logprobs(batch: events_pb2.TokenBatch) -> tuple[tuple[events.TokenLogprob, ...], ...]:
    """Log probabilities of the tokens of each piece; empty where there are none."""
    return tuple(tuple(map(_token_logprob, piece.tokens)) for piece in batch.logprobs)


def _token_logprob(token: events_pb2.TokenLogprob) -> events.TokenLogprob:
    return events.TokenLogprob(
        token.token.decode(errors="replace"),
        token.logprob,
        tuple(map(_token_logprob, token.top)),
    )


def resumed(message: events_pb2.Resumed) -> events.Resumed:
    """A later attempt takes over."""
    return events.Resumed(
        attempt=message.attempt,
        mode=enum(model.ResumeMode, events_pb2.DESCRIPTOR, message.mode),
        text_offset=message.text_offset,
        kv_warmth=message.kv_warmth,
        pool_id=message.pool_id,
        replica_id=message.replica_id,
    )


def end(message: events_pb2.End) -> events.End:
    """The outcome of a job that finished or was cancelled."""
    return events.End(
        state=_state(message.state),
        finish_reason=_finish_reason(message.finish_reason),
        usage=usage(message.usage),
        text_bytes=message.text_bytes,
    )


def _exclusion(message: decision_pb2.Exclusion) -> model.Exclusion:
    return model.Exclusion(
        pool_id=message.pool_id,
        shortfalls=tuple(
            model.Shortfall(
                reason=enum(model.ExclusionReason, decision_pb2.DESCRIPTOR, item.reason),
                required=item.required,
                offered=item.offered,
            )
            for item in message.shortfalls
        ),
    )


def _candidate(message: decision_pb2.Candidate) -> model.Candidate:
    return model.Candidate(
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        predicted_end_ms=message.predicted_end_ms,
        first_token_ms=message.first_token_ms,
        decode_ms=message.decode_ms,
        kv_warm=message.kv_warm,
        slots_free=message.slots_free,
        vram_headroom_bytes=(
            message.vram_headroom_bytes if message.HasField("vram_headroom_bytes") else None
        ),
        snapshot_version=message.snapshot_version,
        snapshot_age_ms=message.snapshot_age_ms,
        tokens_per_s=message.tokens_per_s,
        perf_scale=message.perf_scale if message.HasField("perf_scale") else 1.0,
        prompt_ms=message.prompt_ms if message.HasField("prompt_ms") else None,
        snapshot=_facts(message.snapshot) if message.HasField("snapshot") else None,
    )


def _facts(message: decision_pb2.SnapshotFacts) -> model.SnapshotFacts:
    known = message.HasField
    return model.SnapshotFacts(
        slots_total=message.slots_total,
        slots_free=message.slots_free,
        vram_total_bytes=message.vram_total_bytes if known("vram_total_bytes") else None,
        vram_free_bytes=message.vram_free_bytes if known("vram_free_bytes") else None,
        kv_free_bytes=message.kv_free_bytes if known("kv_free_bytes") else None,
        perf_tokens_per_s=message.perf_tokens_per_s if known("perf_tokens_per_s") else None,
        first_token_ms=message.first_token_ms if known("first_token_ms") else None,
        prefill_tokens_per_s=(
            message.prefill_tokens_per_s if known("prefill_tokens_per_s") else None
        ),
    )


def decision(message: decision_pb2.Decision) -> model.Decision:
    """One placement."""
    return model.Decision(
        rules_version=message.rules_version,
        job_id=message.job_id,
        attempt=message.attempt,
        decided_at=instant(message.decided_at, message.HasField("decided_at")),
        pool_id=message.pool_id,
        decided_by=message.decided_by,
        candidates=tuple(_candidate(item) for item in message.candidates),
        candidates_total=message.candidates_total,
        exclusions=tuple(_exclusion(item) for item in message.exclusions),
        exclusions_total=message.exclusions_total,
        waited_ms=message.waited_ms,
        declined_offers=message.declined_offers,
        complete=message.complete,
    )


def explanation(message: orchestrator_service_pb2.ExplainJobResponse) -> model.Explanation:
    """Why a job runs where it runs."""
    return model.Explanation(
        job=job(message.job),
        decisions=tuple(decision(item) for item in message.decisions),
        waiting_for=tuple(_exclusion(item) for item in message.waiting_for),
        trace_id=message.trace_id,
        # An older server does not count them.
        waiting_for_total=max(message.waiting_for_total, len(message.waiting_for)),
        wait_summary=message.wait_summary,
        wait_remedy=message.wait_remedy,
        wait_causes=tuple(_wait_cause(item) for item in message.wait_causes),
    )


def _wait_cause(message: orchestrator_service_pb2.WaitCause) -> model.WaitCause:
    return model.WaitCause(
        reason=enum(model.ExclusionReason, decision_pb2.DESCRIPTOR, message.reason),
        sentence=message.sentence,
        remedy=message.remedy,
        pools_total=message.pools_total,
        pool_ids=tuple(message.pool_ids),
    )


def outbound_decision(
    message: policy_service_pb2.CheckOutboundResponse,
) -> model.OutboundDecision:
    """Whether a tool may connect."""
    return model.OutboundDecision(
        allowed=message.allowed,
        decision_id=message.decision_id,
        rule=message.rule,
        reason=message.reason,
        scheme=message.scheme,
        host=message.host,
    )
