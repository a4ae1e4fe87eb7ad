# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as exceptions.

    LlamaOrchError
    ├── RejectedError        ADMISSION_REJECT: the queue is full, a throttle or a budget said no
    ├── InvalidParamsError   INVALID_PARAMS: `violations` names every bad field
    ├── IncompatibleError    INCOMPATIBLE_MODEL | _ENGINE | _DEVICE_MASK: no pool can ever serve it
    ├── DuplicateError       DUPLICATE: the job_id or request_id belongs to another job
    ├── NotFoundError        NOT_FOUND: no such job, session, pool or artifact;
    │                        MODEL_UNKNOWN: no such model in the catalog
    ├── InUseError           ARTIFACT_IN_USE: a job that has not ended needs the artifact
    ├── DataLossError        DATA_LOSS: stored content is not what was put; nothing of it is right
    ├── CatalogError         MODEL_RETIRED | MODEL_IN_USE | REVISION_CONFLICT
    ├── ResumeWindowError    RESUME_WINDOW: the server no longer holds that part of the output
    ├── AccessError          UNAUTHENTICATED | PERMISSION_DENIED
    ├── UnavailableError     the server cannot be reached, or cannot work now: POOL_UNREADY, ...
    ├── ServerError          INTERNAL and every reason that this version does not know
    ├── JobFailedError       the job was accepted and then failed, expired or was dropped
    └── IntegrityError       the server broke the stream's contract: gap, wrong digest, late event

Every error carries the server's stable `reason`; `message` is for people and may change. gRPC's own
error, with what it said of the connection, is the `__cause__`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from llamaorch_client.metadata import CORRELATION_ID_KEY, first_value
from llamaorch_client.troubles import Trouble, is_break, sentence, trouble_of

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Source: grpc 1.85, message_size_filter.cc.
TOO_LARGE = "message larger than max"
_WRITE_FAILED = "Internal error from Core"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the server refused."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class PoolShortfall:
    """One thing that one pool lacks for the job."""

    pool_id: str
    kind: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Everything that is known about an error.

    `code` is the canonical gRPC code's name. `retry_after_ms` is None when the server named no
    delay. `connection` says what kept the call from the server; NONE where the server answered.
    """

    message: str
    reason: str = "UNKNOWN"
    code: str = "UNKNOWN"
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    violations: tuple[FieldViolation, ...] = ()
    shortfalls: tuple[PoolShortfall, ...] = ()
    correlation_id: str = ""
    connection: Trouble = Trouble.NONE


class LlamaOrchError(Exception):
    """Base of everything that this package raises for a reason outside the caller's program.

    `attempts` counts the calls that were made before giving up.
    """

    def __init__(self, detail: ErrorDetail) -> None:
        super().__init__(detail.message)
        self.detail = detail
        self.attempts = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """As processes hand it to one another; made from the message alone it would be none."""
        return _again, (type(self), self.detail.message, self.__dict__)

    @property
    def message(self) -> str:
        """The server's sentence for people."""
        return self.detail.message

    @property
    def reason(self) -> str:
        """Stable reason, UPPER_SNAKE."""
        return self.detail.reason

    @property
    def code(self) -> str:
        """Name of the canonical gRPC code."""
        return self.detail.code

    @property
    def metadata(self) -> Mapping[str, str]:
        """The server's key-value pairs, e.g. `policy_label`, `engine`, `pool_id`."""
        return self.detail.metadata

    @property
    def retry_after_ms(self) -> int | None:
        """Least wait before a retry, milliseconds; None when the server named none (ORCH-3017)."""
        return self.detail.retry_after_ms

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Every field that was refused."""
        return self.detail.violations

    @property
    def correlation_id(self) -> str:
        """Id under which the server logged the call (HME-030)."""
        return self.detail.correlation_id

    @property
    def retriable(self) -> bool:
        """Whether the same call can succeed later: the server's word, else False."""
        return self.metadata.get("retriable", "").lower() == "true"


def _again(kind: type[LlamaOrchError], message: str, state: dict[str, Any]) -> LlamaOrchError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class RejectedError(LlamaOrchError):
    """The job was never queued; `policy_label` says why (ORCH-3016, ORCH-2007)."""

    @property
    def policy_label(self) -> str:
        """Rule that refused the job, e.g. "reject" or "throttle"; empty when not told."""
        return self.metadata.get("policy_label", "")

    @property
    def retriable(self) -> bool:
        """A rejection may be retried only when the server says when (RetryInfo)."""
        return self.retry_after_ms is not None and self.metadata.get("retriable") != "false"


class InvalidParamsError(LlamaOrchError):
    """The request is wrong; `violations` names every bad field."""


class IncompatibleError(LlamaOrchError):
    """No registered pool can ever serve the job; `shortfalls` says what each one lacks (LO-201)."""

    @property
    def shortfalls(self) -> tuple[PoolShortfall, ...]:
        """What each pool lacks."""
        return self.detail.shortfalls


class DuplicateError(LlamaOrchError):
    """The job_id or request_id was used before for another job (ORCH-3024)."""


class NotFoundError(LlamaOrchError):
    """The server does not know the job or what else was named, or has forgotten it."""


class InUseError(LlamaOrchError):
    """An artifact cannot be deleted: a job that has not ended has it as its input."""


class DataLossError(LlamaOrchError):
    """Stored content is not what was put; what came of it must not be used (ORCH-3097)."""


class CatalogError(LlamaOrchError):
    """The catalog of models says no (ORCH-3031).

    MODEL_RETIRED: the model takes no more jobs. MODEL_IN_USE: it cannot be deleted yet.
    REVISION_CONFLICT: somebody changed it meanwhile.
    """

    @property
    def replaced_by(self) -> str:
        """Model that takes the place of a retired one; empty when not told."""
        return self.metadata.get("replaced_by", "")


class ResumeWindowError(LlamaOrchError):
    """The output cannot be resumed at that point (LO-301)."""

    @property
    def oldest_offset(self) -> int | None:
        """UTF-8 offset of the oldest output still held; None when not told."""
        value = self.metadata.get("oldest_offset", "")
        return int(value) if value.isdecimal() else None


class AccessError(LlamaOrchError):
    """Credentials are missing, wrong or not sufficient: see `ClientOptions.token`."""

    def __str__(self) -> str:
        """The server speaks of metadata; callers of this package set an option."""
        return f"{self.message} (ClientOptions.token)"


class UnavailableError(LlamaOrchError):
    """The server cannot be reached or cannot work now; the same call may succeed later."""

    @property
    def retriable(self) -> bool:
        """True unless the server says that a retry is useless."""
        return self.metadata.get("retriable") != "false"


class ServerError(LlamaOrchError):
    """A bug in the server, or a reason that this version of the client does not know."""


class JobFailedError(LlamaOrchError):
    """The outcome of a job that failed, expired or was dropped; the call itself was fine."""

    def __init__(self, detail: ErrorDetail, job_id: str = "") -> None:
        super().__init__(detail)
        self.job_id = job_id


class IntegrityError(LlamaOrchError):
    """The stream broke its contract; nothing after this point can be trusted (LO-301)."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorDetail(message=message, reason="STREAM_INTEGRITY", code="DATA_LOSS"))


_BY_REASON: dict[str, type[LlamaOrchError]] = {
    "ADMISSION_REJECT": RejectedError,
    "INVALID_PARAMS": InvalidParamsError,
    "INCOMPATIBLE_MODEL": IncompatibleError,
    "INCOMPATIBLE_ENGINE": IncompatibleError,
    "INCOMPATIBLE_DEVICE_MASK": IncompatibleError,
    "DUPLICATE": DuplicateError,
    "NOT_FOUND": NotFoundError,
    "MODEL_UNKNOWN": NotFoundError,
    "MODEL_RETIRED": CatalogError,
    "MODEL_IN_USE": CatalogError,
    "REVISION_CONFLICT": CatalogError,
    "RESUME_WINDOW": ResumeWindowError,
    "ARTIFACT_IN_USE": InUseError,
    "DATA_LOSS": DataLossError,
    "UNAUTHENTICATED": AccessError,
    "PERMISSION_DENIED": AccessError,
}
# For reasons that are not in the table, and for errors that gRPC itself or a proxy raised. A call
# that timed out or that the server shed under load (CANCELLED) never got an answer: the server is
# unavailable.
_BY_CODE: dict[str, type[LlamaOrchError]] = {
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": UnavailableError,
    "CANCELLED": UnavailableError,
    "RESOURCE_EXHAUSTED": RejectedError,
    "INVALID_ARGUMENT": InvalidParamsError,
    "FAILED_PRECONDITION": IncompatibleError,
    "ALREADY_EXISTS": DuplicateError,
    "NOT_FOUND": NotFoundError,
    "OUT_OF_RANGE": ResumeWindowError,
    "DATA_LOSS": DataLossError,
    "UNAUTHENTICATED": AccessError,
    "PERMISSION_DENIED": AccessError,
}
_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def detail_of(status: status_pb2.Status, correlation_id: str = "") -> ErrorDetail:
    """Reads a google.rpc.Status; details of unknown types are skipped."""
    code = _CODE_NAMES.get(status.code, "UNKNOWN")
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    failed = error_details_pb2.PreconditionFailure()
    retry_present = False
    for packed in status.details:
        for target in (info, retry, bad, failed):
            if packed.Is(target.DESCRIPTOR) and _unpack(packed.value, target):
                retry_present = retry_present or target is retry
    metadata = dict(info.metadata)
    return ErrorDetail(
        message=status.message or code,
        reason=info.reason or code,
        code=code,
        metadata=metadata,
        retry_after_ms=_retry_after_ms(retry if retry_present else None, metadata),
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
        shortfalls=tuple(
            PoolShortfall(v.subject, v.type, v.description) for v in failed.violations
        ),
        correlation_id=correlation_id,
    )


def error_of(detail: ErrorDetail) -> LlamaOrchError:
    """Returns the exception for a call's error: by reason, else by code."""
    kind = _BY_REASON.get(detail.reason) or _BY_CODE.get(detail.code) or ServerError
    return kind(detail)


def from_rpc_error(
    error: grpc.aio.AioRpcError, sent_correlation_id: str, target: str = ""
) -> LlamaOrchError:
    """Turns gRPC's exception, which becomes the cause, into ours.

    With the details that the server attached; without any it is the connection to `target` that is
    told of.
    """
    told = _told(error, sent_correlation_id, target)
    told.__cause__ = error
    return told


def _told(error: grpc.aio.AioRpcError, sent_correlation_id: str, target: str) -> LlamaOrchError:
    trailing = _pairs(error.trailing_metadata())
    correlation_id = (
        first_value(_pairs(error.initial_metadata()), CORRELATION_ID_KEY)
        or first_value(trailing, CORRELATION_ID_KEY)
        or sent_correlation_id
    )
    plain = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    rich = status_pb2.Status()
    for key, value in trailing:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes) and _unpack(value, rich):
            # The transport's code is what really happened; the details only add to it.
            rich.code = plain.code
            return error_of(detail_of(rich, correlation_id))
    return error_of(_unanswered(detail_of(plain, correlation_id), target))


def _unanswered(detail: ErrorDetail, target: str) -> ErrorDetail:
    """A detail that gRPC itself or a proxy made, in our words where it is the connection's."""
    text = detail.message
    if TOO_LARGE in text:
        told = f"{target or 'the server'} answered with more than one message may hold: {text}"
        return replace(detail, message=told, reason="MESSAGE_TOO_LARGE", code="INTERNAL")
    code = detail.code
    if code in ("INTERNAL", "UNKNOWN") and is_break(text):
        code = "UNAVAILABLE"
    if code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return detail
    trouble = trouble_of(text)
    return replace(
        detail,
        message=sentence(trouble, text, target),
        reason=code,
        code=code,
        connection=trouble,
    )


def check_size(size_bytes: int) -> None:
    """Raises InvalidParamsError for a request that no message can hold; nothing is sent then."""
    if size_bytes > MESSAGE_BYTES_MAX:
        text = (
            f"the request has {size_bytes} bytes, a message at most {MESSAGE_BYTES_MAX}: put a "
            "long input as an artifact, and give its id as artifact_id"
        )
        raise InvalidParamsError(ErrorDetail(text, "INVALID_PARAMS", "INVALID_ARGUMENT"))


def lost_while_writing(error: grpc.aio.AioRpcError) -> bool:
    """True when a write found the call gone before its status was known, which is then lost.

    Source: grpc 1.85, `_StreamRequestMixin._write` and `set_internal_error`.
    """
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _WRITE_FAILED


def _pairs(metadata: object) -> list[tuple[str, str | bytes]]:
    return list(metadata) if isinstance(metadata, Iterable) else []


def _unpack(
    data: bytes,
    target: error_details_pb2.ErrorInfo
    | error_details_pb2.RetryInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.PreconditionFailure
    | status_pb2.Status,
) -> bool:
    try:
        target.MergeFromString(data)
    except DecodeError:
        return False
    return True


def _retry_after_ms(
    retry: error_details_pb2.RetryInfo | None, metadata: Mapping[str, str]
) -> int | None:
    if retry is not None:
        # Rounded up: the server's delay is a lower bound.
        delay = retry.retry_delay
        return max(0, int(delay.seconds) * 1000 + -(-int(delay.nanos) // 1_000_000))
    value = metadata.get("retry_after_ms", "")
    return int(value) if value.isdecimal() else None
