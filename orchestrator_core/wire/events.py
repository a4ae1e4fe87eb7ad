"""Events of a job as its followers receive them. ORCH-2002, ORCH-3029, ORCH-3100."""

from dataclasses import dataclass

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.effects import JobEnded, JobStarted
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Finish, Outcome, Reason, Refusal
from orchestrator_core.core.spec import Budgets, StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.wire.enums import FINISH_TO_WIRE, JOB_STATE_TO_WIRE, RESUME_MODE_TO_WIRE
from orchestrator_core.wire.errors import to_status
from orchestrator_core.wire.views import budgets_to_proto, usage_to_proto

# First eight bytes, big-endian, of the SHA-256 of no bytes at all.
EMPTY_TEXT_DIGEST = 0xE3B0C44298FC1C14


@dataclass(frozen=True, slots=True)
class Output:
    """How much text a job produced, and the digest of it."""

    text_bytes: int
    text_digest: int | None


NO_OUTPUT = Output(0, EMPTY_TEXT_DIGEST)


@dataclass(frozen=True, slots=True)
class Where:
    """The incarnation that runs an attempt."""

    pool_id: str
    replica_id: str
    engine: str
    engine_version: str


def queued(
    position: int,
    predicted_start_ms: int | None,
    predicted_end_ms: int | None,
    on_time_probability: float | None = None,
) -> events_pb2.JobEvent:
    """The job waits. `position` 1 is next; predictions in milliseconds from now."""
    return events_pb2.JobEvent(
        queued=events_pb2.Queued(
            queue_position=position,
            predicted_start_ms=predicted_start_ms,
            predicted_end_ms=predicted_end_ms,
            on_time_probability=on_time_probability,
        )
    )


def started(job: Job, effect: JobStarted, where: Where) -> events_pb2.JobEvent:
    """The job runs. Its predicted start, as told at admission, counts from accept."""
    began_ms = job.accepted_ms if job.started_ms is None else job.started_ms
    return events_pb2.JobEvent(
        started=events_pb2.Started(
            queue_position=job.position_at_admission,
            predicted_start_ms=job.predicted_start_ms,
            queue_time_ms=max(0, began_ms - job.accepted_ms),
            pool_id=where.pool_id,
            replica_id=where.replica_id,
            attempt=effect.attempt,
            kv_warmth=effect.kv_warmth,
            seed=job.spec.seed,
            engine=where.engine,
            engine_version=where.engine_version,
        )
    )


def resumed(effect: JobStarted, where: Where, text_offset: int) -> events_pb2.JobEvent:
    """A later attempt goes on after `text_offset` bytes of output. ORCH-3009, LO-304."""
    return events_pb2.JobEvent(
        resumed=events_pb2.Resumed(
            attempt=effect.attempt,
            mode=RESUME_MODE_TO_WIRE[effect.mode],
            text_offset=text_offset,
            kv_warmth=effect.kv_warmth,
            pool_id=where.pool_id,
            replica_id=where.replica_id,
        )
    )


def started_or_resumed(
    job: Job, effect: JobStarted, where: Where, text_offset: int
) -> events_pb2.JobEvent:
    """What followers are told about a new attempt, by its mode."""
    if effect.mode is StartMode.FRESH:
        return started(job, effect, where)
    return resumed(effect, where, text_offset)


def metrics(
    queue_depth: int,
    on_time_probability: float | None,
    remaining: Budgets | None,
    *,
    kv_warmth: bool,
) -> events_pb2.JobEvent:
    """How the job and its surroundings are doing. ORCH-3100, HME-021.

    Keys and values never migrate. ORCH-3023.
    """
    return events_pb2.JobEvent(
        metrics=events_pb2.Metrics(
            queue_depth=queue_depth,
            on_time_probability=on_time_probability,
            kv_warmth=kv_warmth,
            remaining=budgets_to_proto(remaining),
        )
    )


def ended(effect: JobEnded, delivered: Output = NO_OUTPUT) -> events_pb2.JobEvent:
    """The outcome: `end` for FINISHED and CANCELLED, `error` for the rest. Nothing follows.

    `delivered` is the output known to the relay; it counts where the outcome itself does not say.
    """
    if effect.state not in {JobState.FINISHED, JobState.CANCELLED}:
        return events_pb2.JobEvent(error=to_status(_error_of(effect.outcome)))
    return events_pb2.JobEvent(end=_end(effect, delivered))


def error(refusal: Refusal) -> events_pb2.JobEvent:
    """The outcome of a job that was dropped, expired or failed. Nothing follows."""
    return events_pb2.JobEvent(error=to_status(refusal))


def _end(effect: JobEnded, delivered: Output) -> events_pb2.End:
    outcome = effect.outcome
    cancelled = effect.state is JobState.CANCELLED
    finish = outcome.finish or (Finish.CANCELLED if cancelled else Finish.STOP)
    output = delivered
    if outcome.text_bytes is not None and outcome.text_digest is not None:
        output = Output(outcome.text_bytes, outcome.text_digest)
    return events_pb2.End(
        state=JOB_STATE_TO_WIRE[effect.state],
        finish_reason=FINISH_TO_WIRE[finish],
        usage=usage_to_proto(effect.usage),
        text_bytes=output.text_bytes,
        text_digest=output.text_digest,
    )


def _error_of(outcome: Outcome) -> Refusal:
    if outcome.error is None:
        return Refusal(Reason.INTERNAL, "job failed without an error")
    return outcome.error
