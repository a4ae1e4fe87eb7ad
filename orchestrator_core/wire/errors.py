"""The one error table: reasons of the core to gRPC codes and details. docs/errors.md shows it.

Every error that the orchestrator raises, as the status of a call or as the outcome of a job, goes
through here. ORCH-3016, ORCH-3017, ORCH-2007.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from orchestrator_core.core.outcome import Reason, Refusal

DOMAIN = "llamaorch.dev"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
JOB_RESOURCE = "llamaorch.orchestrator.v1.Job"

# A status travels base64-encoded in trailing metadata next to its percent-encoded message, and gRPC
# stacks refuse more than 8 KiB of metadata by default. Source: grpc `max_metadata_size`.
STATUS_BYTES_MAX = 4_096
TEXT_BYTES_MAX = 600
METADATA_ENTRIES_MAX = 6
METADATA_KEY_BYTES_MAX = 32
NAME_BYTES_MAX = 128
DESCRIPTION_BYTES_MAX = 256


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one reason looks on the wire.

    `retriable` is the default answer to "can the same request succeed later?". With `delayed` the
    refusal decides: it is retriable exactly when it says when (`retry_after_ms`), and then carries
    RetryInfo. `details` names what comes with ErrorInfo.
    """

    code: grpc.StatusCode
    retriable: bool
    delayed: bool = False
    details: tuple[str, ...] = ()


_INCOMPATIBLE = ErrorRow(
    grpc.StatusCode.FAILED_PRECONDITION, retriable=False, details=("PreconditionFailure",)
)
_OF_A_MODEL = ErrorRow(
    grpc.StatusCode.FAILED_PRECONDITION, retriable=False, details=("ResourceInfo",)
)
_COMES_BACK = ErrorRow(
    grpc.StatusCode.UNAVAILABLE, retriable=True, delayed=True, details=("RetryInfo",)
)
_TOO_LATE = ErrorRow(grpc.StatusCode.DEADLINE_EXCEEDED, retriable=False)

ERROR_TABLE: dict[Reason, ErrorRow] = {
    Reason.ADMISSION_REJECT: ErrorRow(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        retriable=True,
        delayed=True,
        details=("RetryInfo", "QuotaFailure", "BadRequest"),
    ),
    Reason.QUEUE_FULL_DROP_LRU: ErrorRow(
        grpc.StatusCode.RESOURCE_EXHAUSTED, retriable=True, delayed=True, details=("RetryInfo",)
    ),
    Reason.INVALID_PARAMS: ErrorRow(
        grpc.StatusCode.INVALID_ARGUMENT, retriable=False, details=("BadRequest",)
    ),
    Reason.INCOMPATIBLE_MODEL: _INCOMPATIBLE,
    Reason.INCOMPATIBLE_ENGINE: _INCOMPATIBLE,
    Reason.INCOMPATIBLE_DEVICE_MASK: _INCOMPATIBLE,
    Reason.MODEL_UNKNOWN: ErrorRow(
        grpc.StatusCode.NOT_FOUND, retriable=False, details=("ResourceInfo",)
    ),
    Reason.MODEL_RETIRED: _OF_A_MODEL,
    Reason.MODEL_IN_USE: _OF_A_MODEL,
    Reason.REVISION_CONFLICT: ErrorRow(
        grpc.StatusCode.ABORTED, retriable=False, details=("ResourceInfo",)
    ),
    Reason.POOL_UNREADY: _COMES_BACK,
    Reason.POOL_UNAVAILABLE: _COMES_BACK,
    Reason.REPLICA_EXHAUSTED: ErrorRow(grpc.StatusCode.UNAVAILABLE, retriable=True),
    Reason.DEADLINE: _TOO_LATE,
    Reason.DECODE_TIMEOUT: _TOO_LATE,
    Reason.WORKER_RESET: ErrorRow(grpc.StatusCode.ABORTED, retriable=True),
    # The code of an ENGINE_ERROR depends on its kind, see ENGINE_ERROR_CODES.
    Reason.ENGINE_ERROR: ErrorRow(grpc.StatusCode.UNKNOWN, retriable=False),
    Reason.STORE_UNAVAILABLE: _COMES_BACK,
    Reason.DUPLICATE: ErrorRow(
        grpc.StatusCode.ALREADY_EXISTS, retriable=False, details=("ResourceInfo",)
    ),
    Reason.NOT_FOUND: ErrorRow(
        grpc.StatusCode.NOT_FOUND, retriable=False, details=("ResourceInfo",)
    ),
    Reason.RESUME_WINDOW: ErrorRow(grpc.StatusCode.OUT_OF_RANGE, retriable=False),
    Reason.ARTIFACT_IN_USE: ErrorRow(
        grpc.StatusCode.FAILED_PRECONDITION, retriable=False, details=("ResourceInfo",)
    ),
    Reason.DATA_LOSS: ErrorRow(
        grpc.StatusCode.DATA_LOSS, retriable=False, details=("ResourceInfo",)
    ),
    Reason.UNAUTHENTICATED: ErrorRow(grpc.StatusCode.UNAUTHENTICATED, retriable=False),
    Reason.PERMISSION_DENIED: ErrorRow(grpc.StatusCode.PERMISSION_DENIED, retriable=False),
    Reason.UNIMPLEMENTED: ErrorRow(grpc.StatusCode.UNIMPLEMENTED, retriable=False),
    Reason.INTERNAL: ErrorRow(grpc.StatusCode.INTERNAL, retriable=False),
}

# By the metadata entry `kind`; other kinds take the row's code. A context overflow is the request's
# fault in every state of the system, which is how google.rpc.Code tells INVALID_ARGUMENT from
# OUT_OF_RANGE; OUT_OF_RANGE stays with RESUME_WINDOW.
ENGINE_ERROR_CODES: dict[str, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "context_overflow": grpc.StatusCode.INVALID_ARGUMENT,
    "device_out_of_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "host_out_of_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "output_too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "engine_died": grpc.StatusCode.INTERNAL,
    "replay_mismatch": grpc.StatusCode.INTERNAL,
    "timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(refusal: Refusal) -> grpc.StatusCode:
    """Returns the canonical code of a refusal."""
    row = ERROR_TABLE[refusal.reason]
    if refusal.reason is Reason.ENGINE_ERROR:
        return ENGINE_ERROR_CODES.get(refusal.metadata.get("kind", ""), row.code)
    return row.code


def retriable(refusal: Refusal) -> bool:
    """Tells whether the same request can succeed later. ORCH-3016."""
    row = ERROR_TABLE[refusal.reason]
    if row.delayed:
        return refusal.retry_after_ms is not None
    return row.retriable


def retry_after_ms(refusal: Refusal) -> int | None:
    """Returns the wait before a retry, milliseconds; None when unknown or no use. ORCH-3017."""
    if not retriable(refusal) or refusal.retry_after_ms is None:
        return None
    return max(0, refusal.retry_after_ms)


def to_status(refusal: Refusal) -> status_pb2.Status:
    """Makes the status of a refusal, at most `STATUS_BYTES_MAX` long.

    Violations that do not fit are counted in the ErrorInfo metadata `violations_omitted`. An
    INTERNAL error shows its trace id and nothing else.
    """
    if refusal.reason is Reason.INTERNAL:
        refusal = _hidden(refusal)
    message = _cut(refusal.message, TEXT_BYTES_MAX)
    status = status_pb2.Status(code=code_of(refusal).value[0], message=message)
    info = _error_info(refusal)
    fixed = [*_delay_details(refusal), *_named_details(refusal)]
    used = status.ByteSize() + info.ByteSize() + sum(detail.ByteSize() for detail in fixed)
    # 64 bytes per detail cover the type URL of its Any and the count of omitted violations.
    used += 64 * (len(fixed) + 3)
    violations, omitted = _violation_detail(refusal, STATUS_BYTES_MAX - used)
    if omitted:
        info.metadata["violations_omitted"] = str(omitted)
    for detail in (info, *fixed, *violations):
        status.details.add().Pack(detail)
    return status


def trailing_metadata(refusal: Refusal) -> tuple[tuple[str, str | bytes], ...]:
    """Returns what accompanies a refused call: the status, and how gRPC's own retries must behave.

    gRPC retries by code and knows nothing of RetryInfo, so the pushback names the wait, or is -1
    when a retry never helps; without a known wait there is none and the client's backoff decides.
    Source: gRFC A6.
    """
    status = rpc_status.to_status(to_status(refusal))
    metadata: list[tuple[str, str | bytes]] = list(status.trailing_metadata)
    wait_ms = retry_after_ms(refusal)
    if wait_ms is not None:
        metadata.append((PUSHBACK_KEY, str(wait_ms)))
    elif not retriable(refusal):
        metadata.append((PUSHBACK_KEY, "-1"))
    return tuple(metadata)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal) -> NoReturn:
    """Ends a call with a refusal, keeping trailing metadata that was set before. Never returns."""
    status = to_status(refusal)
    earlier = tuple(context.trailing_metadata() or ())
    # Whoever watches the call reads it from there: an abort does not tell.
    context.set_code(code_of(refusal))
    await context.abort(code_of(refusal), status.message, (*earlier, *trailing_metadata(refusal)))
    raise AssertionError("context.abort returned")


def _hidden(refusal: Refusal) -> Refusal:
    trace_id = refusal.metadata.get("trace_id", "")
    message = f"internal error, trace {trace_id}" if trace_id else "internal error"
    return Refusal(Reason.INTERNAL, message, metadata={"trace_id": trace_id} if trace_id else {})


def _error_info(refusal: Refusal) -> error_details_pb2.ErrorInfo:
    wait_ms = retry_after_ms(refusal)
    ours = {
        "policy_label": refusal.policy_label,
        "retriable": "true" if retriable(refusal) else "false",
        "retry_after_ms": "" if wait_ms is None else str(wait_ms),
        "engine": refusal.engine,
        "pool_id": refusal.pool_id,
    }
    extra = dict(sorted(refusal.metadata.items())[:METADATA_ENTRIES_MAX])
    metadata = {
        _cut(key, METADATA_KEY_BYTES_MAX): _cut(value, NAME_BYTES_MAX)
        for key, value in (extra | ours).items()
        if value
    }
    return error_details_pb2.ErrorInfo(
        reason=refusal.reason.value, domain=DOMAIN, metadata=metadata
    )


def _delay_details(refusal: Refusal) -> Iterable[Message]:
    wait_ms = retry_after_ms(refusal)
    if wait_ms is not None:
        delay = duration_pb2.Duration(seconds=wait_ms // 1000, nanos=wait_ms % 1000 * 1_000_000)
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _named_details(refusal: Refusal) -> Iterable[Message]:
    kinds = ERROR_TABLE[refusal.reason].details
    if "QuotaFailure" in kinds:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=_cut(refusal.resource or "queue", NAME_BYTES_MAX),
            description=_cut(refusal.policy_label or refusal.message, DESCRIPTION_BYTES_MAX),
        )
        yield error_details_pb2.QuotaFailure(violations=[violation])
    if "ResourceInfo" in kinds:
        yield error_details_pb2.ResourceInfo(
            resource_type=_cut(refusal.metadata.get("resource_type", JOB_RESOURCE), NAME_BYTES_MAX),
            resource_name=_cut(refusal.resource, NAME_BYTES_MAX),
        )


def _violation_detail(refusal: Refusal, room_bytes: int) -> tuple[list[Message], int]:
    """The list-like detail of a refusal with as many entries as fit, and how many did not."""
    kinds = ERROR_TABLE[refusal.reason].details
    entries: Iterable[Message] = ()
    total = 0
    if "BadRequest" in kinds:
        entries, total = _field_violations(refusal), len(refusal.violations)
    elif "PreconditionFailure" in kinds:
        entries = _preconditions(refusal)
        total = sum(len(exclusion.shortfalls) for exclusion in refusal.shortfalls)
    # There may be thousands of pools, so entries are made only while they fit.
    kept: list[Any] = []
    for entry in entries:
        room_bytes -= entry.ByteSize() + 4
        if room_bytes < 0:
            break
        kept.append(entry)
    if not kept:
        return [], total
    if "BadRequest" in kinds:
        return [error_details_pb2.BadRequest(field_violations=kept)], total - len(kept)
    return [error_details_pb2.PreconditionFailure(violations=kept)], total - len(kept)


def _field_violations(refusal: Refusal) -> Iterable[Message]:
    for violation in refusal.violations:
        yield error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, NAME_BYTES_MAX),
            description=_cut(violation.description, DESCRIPTION_BYTES_MAX),
        )


def _preconditions(refusal: Refusal) -> Iterable[Message]:
    for exclusion in refusal.shortfalls:
        for shortfall in exclusion.shortfalls:
            description = f"needs {shortfall.required}, offers {shortfall.offered}"
            yield error_details_pb2.PreconditionFailure.Violation(
                type=shortfall.reason.name,
                subject=_cut(exclusion.pool_id, NAME_BYTES_MAX),
                description=_cut(description, DESCRIPTION_BYTES_MAX),
            )


def _cut(text: str, bytes_max: int) -> str:
    """Shortens to whole characters within `bytes_max`, with an ellipsis; always valid UTF-8."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: bytes_max - 3].decode("utf-8", "ignore") + "…"
