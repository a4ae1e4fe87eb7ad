"""What is told of a job, with what the job does not know itself."""

from orchestrator_core.core.job import Job
from orchestrator_core.core.states import JobState
from orchestrator_core.runtime import Runtime
from orchestrator_core.wire.views import JobView


def job_view(runtime: Runtime, job: Job) -> JobView:
    """A job as it is now: its place and forecast while it waits, its progress while it runs."""
    core, now_ms, told_id = runtime.core, runtime.clock.now_ms(), trace_id(job)
    if not job.live:
        return JobView(job, now_ms, trace_id=told_id)
    chance, expected = core.on_time_probability(job, now_ms), core.expected_tokens(job)
    if job.state is JobState.QUEUED:
        shape = core.forecast(job)
        told = (core.position(job), shape.start_ms, shape.end_ms, chance, told_id)
        return JobView(job, now_ms, *told, expected_tokens=expected)
    end_ms = None
    if job.attempt is not None:
        end_ms = max(0, job.attempt.sent_ms + job.attempt.predicted_end_ms - now_ms)
    return JobView(
        job,
        now_ms,
        predicted_end_ms=end_ms,
        on_time_probability=chance,
        trace_id=told_id,
        output_pieces=runtime.relay.log(job.job_id).next_index,
        expected_tokens=expected,
    )


def trace_id(job: Job) -> str:
    """The trace id within a W3C traceparent. Source: W3C Trace Context, section 3.2.2."""
    parts = job.spec.traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""  # noqa: PLR2004 - version, trace, parent, flags
