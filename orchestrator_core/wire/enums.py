"""Enums of the core and their twins on the wire. A value unknown here counts as unspecified."""

from llamaorch.orchestrator.v1 import decision_pb2, events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.effects import Verdict
from orchestrator_core.core.events import AttemptErrorKind
from orchestrator_core.core.outcome import Finish
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Priority, StartMode
from orchestrator_core.core.states import JobState

PRIORITY_TO_WIRE: dict[Priority, job_pb2.Priority.ValueType] = {
    Priority.INTERACTIVE: job_pb2.PRIORITY_INTERACTIVE,
    Priority.BATCH: job_pb2.PRIORITY_BATCH,
}

JOB_STATE_TO_WIRE: dict[JobState, job_pb2.JobState.ValueType] = {
    JobState.QUEUED: job_pb2.JOB_STATE_QUEUED,
    JobState.DISPATCHED: job_pb2.JOB_STATE_DISPATCHED,
    JobState.RUNNING: job_pb2.JOB_STATE_RUNNING,
    JobState.FINISHED: job_pb2.JOB_STATE_FINISHED,
    JobState.CANCELLED: job_pb2.JOB_STATE_CANCELLED,
    JobState.EXPIRED: job_pb2.JOB_STATE_EXPIRED,
    JobState.DROPPED: job_pb2.JOB_STATE_DROPPED,
    JobState.FAILED: job_pb2.JOB_STATE_FAILED,
}

FINISH_TO_WIRE: dict[Finish, job_pb2.FinishReason.ValueType] = {
    Finish.EOS: job_pb2.FINISH_REASON_EOS,
    Finish.STOP: job_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: job_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: job_pb2.FINISH_REASON_CANCELLED,
    Finish.TOOL_CALLS: job_pb2.FINISH_REASON_TOOL_CALLS,
    Finish.CONTENT_FILTER: job_pb2.FINISH_REASON_CONTENT_FILTER,
}

EXCLUSION_TO_WIRE: dict[ExclusionReason, decision_pb2.ExclusionReason.ValueType] = {
    ExclusionReason.MODEL: decision_pb2.EXCLUSION_REASON_MODEL,
    ExclusionReason.ENGINE: decision_pb2.EXCLUSION_REASON_ENGINE,
    ExclusionReason.DEVICE_MASK: decision_pb2.EXCLUSION_REASON_DEVICE_MASK,
    ExclusionReason.VRAM_TOTAL: decision_pb2.EXCLUSION_REASON_VRAM_TOTAL,
    ExclusionReason.QUANTIZATION: decision_pb2.EXCLUSION_REASON_QUANTIZATION,
    ExclusionReason.COMPUTE_CAP: decision_pb2.EXCLUSION_REASON_COMPUTE_CAP,
    ExclusionReason.EXTENSION: decision_pb2.EXCLUSION_REASON_EXTENSION,
    ExclusionReason.CONTEXT: decision_pb2.EXCLUSION_REASON_CONTEXT,
    ExclusionReason.DETERMINISM: decision_pb2.EXCLUSION_REASON_DETERMINISM,
    ExclusionReason.KV_TOTAL: decision_pb2.EXCLUSION_REASON_KV_TOTAL,
    ExclusionReason.DEVICE_SHARE: decision_pb2.EXCLUSION_REASON_DEVICE_SHARE,
    ExclusionReason.NOT_READY: decision_pb2.EXCLUSION_REASON_NOT_READY,
    ExclusionReason.STALE: decision_pb2.EXCLUSION_REASON_STALE,
    ExclusionReason.NO_SLOT: decision_pb2.EXCLUSION_REASON_NO_SLOT,
    ExclusionReason.KV_ROOM: decision_pb2.EXCLUSION_REASON_KV_ROOM,
    ExclusionReason.RESERVED: decision_pb2.EXCLUSION_REASON_RESERVED,
    ExclusionReason.TRIED: decision_pb2.EXCLUSION_REASON_TRIED,
    ExclusionReason.DECLINED: decision_pb2.EXCLUSION_REASON_DECLINED,
}

VERDICT_TO_WIRE: dict[Verdict, dispatch_pb2.HeldVerdict.ValueType] = {
    Verdict.ADOPT: dispatch_pb2.HELD_VERDICT_ADOPT,
    Verdict.ABORT: dispatch_pb2.HELD_VERDICT_ABORT,
    Verdict.RELEASE: dispatch_pb2.HELD_VERDICT_RELEASE,
}

# A fresh attempt is announced by `started`, every other mode by `resumed` with this value.
RESUME_MODE_TO_WIRE: dict[StartMode, events_pb2.ResumeMode.ValueType] = {
    StartMode.VERIFIED_REPLAY: events_pb2.RESUME_MODE_VERIFIED_REPLAY,
    StartMode.CONTINUE: events_pb2.RESUME_MODE_CONTINUE,
}

_FINISH_FROM_WIRE = {value: key for key, value in FINISH_TO_WIRE.items()}

_ERROR_KIND_FROM_WIRE: dict[int, AttemptErrorKind] = {
    dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED: AttemptErrorKind.ENGINE_DIED,
    dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR: AttemptErrorKind.ENGINE_ERROR,
    dispatch_pb2.ATTEMPT_ERROR_KIND_INVALID_REQUEST: AttemptErrorKind.INVALID_REQUEST,
    dispatch_pb2.ATTEMPT_ERROR_KIND_CONTEXT_OVERFLOW: AttemptErrorKind.CONTEXT_OVERFLOW,
    dispatch_pb2.ATTEMPT_ERROR_KIND_TIMEOUT: AttemptErrorKind.TIMEOUT,
    dispatch_pb2.ATTEMPT_ERROR_KIND_REPLAY_MISMATCH: AttemptErrorKind.REPLAY_MISMATCH,
    dispatch_pb2.ATTEMPT_ERROR_KIND_DEVICE_OUT_OF_MEMORY: AttemptErrorKind.DEVICE_OUT_OF_MEMORY,
    dispatch_pb2.ATTEMPT_ERROR_KIND_HOST_OUT_OF_MEMORY: AttemptErrorKind.HOST_OUT_OF_MEMORY,
    dispatch_pb2.ATTEMPT_ERROR_KIND_OUTPUT_TOO_LARGE: AttemptErrorKind.OUTPUT_TOO_LARGE,
}

_POOL_STATE_FROM_WIRE: dict[int, PoolState] = {
    snapshot_pb2.POOL_STATE_STARTING: PoolState.STARTING,
    snapshot_pb2.POOL_STATE_READY: PoolState.READY,
    snapshot_pb2.POOL_STATE_DRAINING: PoolState.DRAINING,
    snapshot_pb2.POOL_STATE_UNREADY: PoolState.UNREADY,
}


def priority_from_wire(value: job_pb2.Priority.ValueType) -> Priority:
    """PRIORITY_UNSPECIFIED means INTERACTIVE."""
    return Priority.BATCH if value == job_pb2.PRIORITY_BATCH else Priority.INTERACTIVE


def finish_from_wire(value: job_pb2.FinishReason.ValueType) -> Finish:
    """An unknown reason is still a regular end, so it counts as STOP: not cut short, not failed."""
    return _FINISH_FROM_WIRE.get(value, Finish.STOP)


def error_kind_from_wire(value: int) -> AttemptErrorKind:
    """An unknown kind counts as ENGINE_ERROR."""
    return _ERROR_KIND_FROM_WIRE.get(value, AttemptErrorKind.ENGINE_ERROR)


def pool_state_from_wire(value: int) -> PoolState:
    """An unknown state counts as UNREADY."""
    return _POOL_STATE_FROM_WIRE.get(value, PoolState.UNREADY)


def state_reason_from_wire(value: int) -> str:
    """Returns e.g. "engine_exited"; empty when there is no reason or it is not known."""
    if value == snapshot_pb2.POOL_STATE_REASON_UNSPECIFIED:
        return ""
    name = snapshot_pb2.PoolStateReason.DESCRIPTOR.values_by_number.get(value)
    return "" if name is None else name.name.removeprefix("POOL_STATE_REASON_").lower()


def refusal_reason_from_wire(value: int) -> str:
    """Returns e.g. "no_slot"; "unknown" when there is no reason or it is not known."""
    if value == dispatch_pb2.REFUSAL_REASON_UNSPECIFIED:
        return "unknown"
    name = dispatch_pb2.RefusalReason.DESCRIPTOR.values_by_number.get(value)
    return "unknown" if name is None else name.name.removeprefix("REFUSAL_REASON_").lower()
