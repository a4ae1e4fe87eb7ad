"""Jobs of the core as clients see them."""

from dataclasses import dataclass

from google.protobuf import timestamp_pb2

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from orchestrator_core.core.catalog_model import FromCatalog
from orchestrator_core.core.effects import Receipt
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.spec import Budgets
from orchestrator_core.core.states import JobState
from orchestrator_core.wire.enums import FINISH_TO_WIRE, JOB_STATE_TO_WIRE, PRIORITY_TO_WIRE
from orchestrator_core.wire.errors import to_status


@dataclass(frozen=True, slots=True)
class JobView:
    """A job and what it does not know itself.

    `queue_position` is its rank, 1 is next, None once it was dispatched. The predictions are
    milliseconds from `now_ms`; None where there is none. `output_pieces` have arrived so far.
    """

    job: Job
    now_ms: int
    queue_position: int | None = None
    predicted_start_ms: int | None = None
    predicted_end_ms: int | None = None
    on_time_probability: float | None = None
    trace_id: str = ""
    output_pieces: int | None = None
    expected_tokens: int | None = None


def timestamp(instant_ms: int) -> timestamp_pb2.Timestamp:
    """An instant of the core's clock, which counts milliseconds since 1970."""
    seconds, rest_ms = divmod(instant_ms, 1000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest_ms * 1_000_000)


def usage_to_proto(usage: Usage) -> job_pb2.Usage:
    """What a job took; what is not known stays absent."""
    return job_pb2.Usage(
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        queue_time_ms=usage.queue_time_ms,
        first_token_ms=usage.first_token_ms,
        decode_time_ms=usage.decode_time_ms,
    )


def budgets_to_proto(budgets: Budgets | None) -> job_pb2.Budgets | None:
    """Budgets, or what is left of them; what is unbounded stays absent."""
    if budgets is None:
        return None
    return job_pb2.Budgets(
        tokens=budgets.tokens, time_ms=budgets.time_ms, cost_micros=budgets.cost_micros
    )


def from_catalog_to_proto(added: FromCatalog | None) -> job_pb2.FromCatalog | None:
    """What the catalog added to a job; None where it does not have the model."""
    if added is None:
        return None
    return job_pb2.FromCatalog(
        alias=added.alias, revision=added.revision, filled=dict(added.filled)
    )


def job_to_proto(view: JobView) -> job_pb2.Job:
    """One job as it is now, without prompt and output. O(labels)."""
    job, spec = view.job, view.job.spec
    message = job_pb2.Job(
        job_id=spec.job_id,
        state=JOB_STATE_TO_WIRE[job.state],
        priority=PRIORITY_TO_WIRE[spec.priority],
        engine=spec.needs.engine,
        model_id=spec.needs.model_id,
        session_id=spec.session_id,
        accepted_at=timestamp(job.accepted_ms),
        attempt=job.attempts_made,
        usage=usage_to_proto(job.usage),
        trace_id=view.trace_id,
        labels=dict(spec.labels),
        output_pieces=view.output_pieces,
        expected_tokens=view.expected_tokens,
        from_catalog=from_catalog_to_proto(spec.from_catalog),
    )
    _add_progress(message, view)
    _add_placement(message, job)
    _add_outcome(message, job)
    return message


def receipt_to_proto(receipt: Receipt) -> orchestrator_service_pb2.EnqueueResponse:
    """The answer to an accepted job."""
    return orchestrator_service_pb2.EnqueueResponse(
        job_id=receipt.job_id,
        queue_position=receipt.position,
        predicted_start_ms=receipt.predicted_start_ms,
        predicted_end_ms=receipt.predicted_end_ms,
        on_time_probability=receipt.on_time_probability,
        backoff_ms=receipt.backoff_ms,
        seed=receipt.seed,
        duplicate=receipt.duplicate,
        remaining=budgets_to_proto(receipt.remaining),
        from_catalog=from_catalog_to_proto(receipt.from_catalog),
    )


def _add_progress(message: job_pb2.Job, view: JobView) -> None:
    job = view.job
    if job.started_ms is not None:
        message.started_at.CopyFrom(timestamp(job.started_ms))
    if job.ended_ms is not None:
        message.ended_at.CopyFrom(timestamp(job.ended_ms))
    if view.queue_position is not None:
        message.queue_position = view.queue_position
    running = job.state is JobState.RUNNING
    if view.predicted_start_ms is not None and job.live and not running:
        message.predicted_start_ms = max(0, view.predicted_start_ms)
    if view.on_time_probability is not None:
        message.on_time_probability = view.on_time_probability
    if view.predicted_end_ms is not None and job.live:
        message.predicted_end_ms = max(0, view.predicted_end_ms)


def _add_placement(message: job_pb2.Job, job: Job) -> None:
    """Names the current attempt's pool, or the last attempt's, which its decision remembers."""
    if job.attempt is not None:
        message.pool_id = job.attempt.pool_id
        message.replica_id = job.attempt.replica_id
    elif job.decisions:
        last = job.decisions[-1]
        message.pool_id = last.pool_id
        message.replica_id = last.candidates[0].replica_id if last.candidates else ""


def _add_outcome(message: job_pb2.Job, job: Job) -> None:
    if job.outcome is None:
        return
    if job.state in {JobState.FINISHED, JobState.CANCELLED}:
        fallback = Finish.CANCELLED if job.state is JobState.CANCELLED else Finish.STOP
        message.finish_reason = FINISH_TO_WIRE[job.outcome.finish or fallback]
    elif job.outcome.error is not None:
        message.error.CopyFrom(to_status(job.outcome.error))
