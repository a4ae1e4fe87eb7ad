"""Why a job runs where it runs, or why it waits, within one message. LO-207."""

from collections.abc import Mapping, Sequence

from llamaorch.orchestrator.v1 import decision_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.decision import Decision, Exclusion
from orchestrator_core.core.explain import Explained
from orchestrator_core.core.job import Job
from orchestrator_core.core.states import JobState
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.job_views import job_view, trace_id
from orchestrator_core.servicers.paging import PAGE_BYTES_MAX, fitting
from orchestrator_core.servicers.waiting import NO_WAIT, Cause, why_waiting
from orchestrator_core.wire.decisions import decision_to_proto, exclusion_to_proto
from orchestrator_core.wire.enums import EXCLUSION_TO_WIRE
from orchestrator_core.wire.views import job_to_proto


def explained(runtime: Runtime, job: Job, full: Mapping[int, Explained]) -> pb.ExplainJobResponse:
    """What is known of a job's placements; `full` are those that were made again, by attempt."""
    now_ms = runtime.clock.now_ms()
    waits = job.state is JobState.QUEUED
    lacking = runtime.core.waiting_for(job, now_ms) if waits else ()
    waiting_for = waiting(lacking)
    room_bytes = PAGE_BYTES_MAX - sum(each.ByteSize() for each in waiting_for)
    why = why_waiting(runtime.core, job, lacking, now_ms) if waits else NO_WAIT
    return pb.ExplainJobResponse(
        job=job_to_proto(job_view(runtime, job)),
        decisions=decisions(job.decisions, full, room_bytes),
        waiting_for=waiting_for,
        waiting_for_total=len(lacking),
        trace_id=trace_id(job),
        wait_summary=why.summary,
        wait_remedy=why.remedy,
        wait_causes=map(_cause, why.causes),
    )


def _cause(cause: Cause) -> pb.WaitCause:
    return pb.WaitCause(
        reason=EXCLUSION_TO_WIRE[cause.reason],
        sentence=cause.sentence,
        remedy=cause.remedy,
        pools_total=cause.pools_total,
        pool_ids=cause.pool_ids,
    )


def waiting(
    lacking: Sequence[Exclusion], bytes_max: int = PAGE_BYTES_MAX // 2
) -> list[decision_pb2.Exclusion]:
    """What pools lack, as many as have room."""
    return fitting(map(exclusion_to_proto, lacking), bytes_max)


def decisions(
    made: Sequence[Decision], full: Mapping[int, Explained], bytes_max: int
) -> list[decision_pb2.Decision]:
    """Decisions, oldest first; the latest in full as far as there is room, the others in short."""
    told: list[decision_pb2.Decision] = []
    for decision in reversed(made):
        message = decision_to_proto(decision, full.get(decision.attempt))
        if message.ByteSize() > bytes_max:
            message = decision_to_proto(decision)
        bytes_max -= message.ByteSize()
        told.append(message)
    return told[::-1]
