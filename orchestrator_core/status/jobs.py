"""Jobs as the page shows them: a choice of what clients are told of them."""

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.status.model import EndedJob, RunningJob, WaitingJob


def waiting(job: job_pb2.Job, now_ms: int) -> WaitingJob:
    """A job that waits."""
    return WaitingJob(
        job_id=job.job_id,
        session_id=job.session_id,
        priority=priority(job),
        model_id=job.model_id,
        position=job.queue_position if job.HasField("queue_position") else None,
        attempts=job.attempt,
        waited_ms=_since(job.accepted_at, now_ms),
        starts_in_ms=job.predicted_start_ms if job.HasField("predicted_start_ms") else None,
        ends_in_ms=_ends_in_ms(job),
        on_time_ratio=_on_time_ratio(job),
    )


def running(job: job_pb2.Job, now_ms: int) -> RunningJob:
    """A job that was given a slot; it runs once the engine took it up."""
    return RunningJob(
        job_id=job.job_id,
        session_id=job.session_id,
        priority=priority(job),
        model_id=job.model_id,
        pool_id=job.pool_id,
        state=state(job),
        attempt=job.attempt,
        pieces=job.output_pieces,
        expected_tokens=job.expected_tokens,
        runs_for_ms=_since(job.started_at, now_ms) if job.HasField("started_at") else None,
        ends_in_ms=_ends_in_ms(job),
        on_time_ratio=_on_time_ratio(job),
    )


def ended(job: job_pb2.Job, now_ms: int) -> EndedJob:
    """A job that is over."""
    usage = job.usage
    return EndedJob(
        job_id=job.job_id,
        session_id=job.session_id,
        priority=priority(job),
        model_id=job.model_id,
        pool_id=job.pool_id,
        state=state(job),
        why=_why(job),
        attempts=job.attempt,
        tokens_in=usage.tokens_in if usage.HasField("tokens_in") else None,
        tokens_out=usage.tokens_out if usage.HasField("tokens_out") else None,
        queued_ms=usage.queue_time_ms if usage.HasField("queue_time_ms") else None,
        first_token_ms=usage.first_token_ms if usage.HasField("first_token_ms") else None,
        took_ms=_since(job.accepted_at, job.ended_at.ToMilliseconds()),
        ended_ago_ms=_since(job.ended_at, now_ms),
    )


def state(job: job_pb2.Job) -> str:
    """Its state in plain letters."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def priority(job: job_pb2.Job) -> str:
    """Its class in plain letters."""
    return job_pb2.Priority.Name(job.priority).removeprefix("PRIORITY_").lower()


def _why(job: job_pb2.Job) -> str:
    """The reason alone: the sentence of an error may hold words of an engine."""
    info = error_details_pb2.ErrorInfo()
    for detail in job.error.details:
        if detail.Unpack(info):
            return str(info.reason)
    if not job.finish_reason:
        return ""
    return job_pb2.FinishReason.Name(job.finish_reason).removeprefix("FINISH_REASON_").lower()


def _since(instant: Timestamp, now_ms: int) -> int:
    return max(0, now_ms - instant.ToMilliseconds())


def _ends_in_ms(job: job_pb2.Job) -> int | None:
    return job.predicted_end_ms if job.HasField("predicted_end_ms") else None


def _on_time_ratio(job: job_pb2.Job) -> float | None:
    return job.on_time_probability if job.HasField("on_time_probability") else None
