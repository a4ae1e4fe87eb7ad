"""Requests, errors and conversions that need no server."""

import copy
import pickle
import typing
from dataclasses import fields
from datetime import datetime

import grpc
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from llamaorch.orchestrator.v1 import decision_pb2, events_pb2, job_pb2
from llamaorch_client import (
    ArtifactAbout,
    ArtifactFilter,
    CatalogModel,
    ErrorDetail,
    ExclusionReason,
    FinishReason,
    IncompatibleError,
    IntegrityError,
    JobFailedError,
    JobFilter,
    JobRequest,
    JobState,
    LlamaOrchError,
    PoolShortfall,
    RejectedError,
    Requirements,
    ResumeMode,
    Sampling,
    UnavailableError,
    Usage,
    errors,
    request,
    wire_request,
)


def test_keyword_fields_are_exactly_the_requests_fields() -> None:
    """A field added to JobRequest can be given as a keyword, with the same type."""
    declared = {item.name: item.type for item in fields(JobRequest)}

    assert typing.get_type_hints(request.JobFields) == declared


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (JobState, job_pb2.JobState),
        (FinishReason, job_pb2.FinishReason),
        (ResumeMode, events_pb2.ResumeMode),
        (ExclusionReason, decision_pb2.ExclusionReason),
        (request.Priority, job_pb2.Priority),
        (request.Determinism, job_pb2.Determinism),
        (request.KvHint, job_pb2.KvHint),
        (request.FailoverPolicy, job_pb2.FailoverPolicy),
        (request.OnDisconnect, job_pb2.OnDisconnect),
    ],
)
def test_enums_have_every_value_of_the_wire(ours: typing.Any, theirs: typing.Any) -> None:
    """A value added to the protos and not here would read as unspecified."""
    prefix = theirs.keys()[0].removesuffix("UNSPECIFIED")
    on_the_wire = {name.removeprefix(prefix) for name in theirs.keys()}  # noqa: SIM118 - no mapping

    assert on_the_wire - {"UNSPECIFIED"} == set(ours.__members__) - {"UNSPECIFIED"}


def test_a_request_needs_exactly_one_input_and_an_aware_deadline() -> None:
    """Mistakes are found before anything is sent."""
    with pytest.raises(ValueError, match="exactly one"):
        JobRequest(model_id="m")
    with pytest.raises(ValueError, match="exactly one"):
        JobRequest(model_id="m", prompt="", artifact_id="a")
    with pytest.raises(ValueError, match="time zone"):
        JobRequest(model_id="m", prompt="p", deadline=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="at most one"):
        Sampling(json_schema="{}", grammar="root ::= x")


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Sampling, {"stop": "END"}),
        (Requirements, {"device_mask": "GPU-1"}),
        (Requirements, {"required_extensions": "x"}),
        (ArtifactAbout, {"tags": "release"}),
        (ArtifactAbout, {"parent_ids": "a"}),
        (ArtifactFilter, {"tags": "release"}),
        (CatalogModel, {"model_id": "m", "aliases": "chat"}),
        (CatalogModel, {"model_id": "m", "engines": "vllm"}),
        (JobFilter, {"states": JobState.QUEUED}),
    ],
)
def test_one_text_is_no_sequence_of_texts(kind: typing.Any, given: dict[str, typing.Any]) -> None:
    """Its letters would be: a job would stop at the first E."""
    (name,) = given.keys() - {"model_id"}

    with pytest.raises(ValueError, match=f"^{name} must be a sequence"):
        kind(**given)


def test_what_is_of_another_type_is_told_as_the_callers_mistake() -> None:
    """Which no type checker has seen."""
    messages: typing.Any = ({"role": "user", "content": "Hi"},)

    with pytest.raises(ValueError, match="the job cannot be sent: 'dict' object"):
        wire_request.job_spec(JobRequest(model_id="m", messages=messages), "r")


def _sent(error: LlamaOrchError) -> LlamaOrchError:
    told: LlamaOrchError = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    return told


@pytest.mark.parametrize("again", [copy.copy, _sent])
def test_errors_travel_between_processes(again: typing.Any) -> None:
    """A worker of a pool that raises one would end the whole pool."""
    detail = ErrorDetail("full", "ADMISSION_REJECT", metadata={"a": "b"}, retry_after_ms=5)
    rejected, failed = RejectedError(detail), JobFailedError(detail, "job-1")
    rejected.attempts = 3

    told, other = again(rejected), again(failed)
    broke = again(IntegrityError("a gap"))

    assert (type(told), told.detail, told.attempts) == (RejectedError, detail, 3)
    assert (type(other), other.job_id, str(other)) == (JobFailedError, "job-1", "full")
    assert (type(broke), broke.message, broke.reason) == (
        IntegrityError,
        "a gap",
        "STREAM_INTEGRITY",
    )


def _status(code: grpc.StatusCode, *details: typing.Any) -> status_pb2.Status:
    packed = [PackedAny() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return status_pb2.Status(code=code.value[0], message="told", details=packed)


def test_details_of_an_error_are_read_and_unknown_ones_skipped() -> None:
    """LO-201: shortfalls per pool arrive; metadata gives the delay that RetryInfo does not."""
    status = _status(
        grpc.StatusCode.FAILED_PRECONDITION,
        error_details_pb2.Help(),
        error_details_pb2.ErrorInfo(
            reason="INCOMPATIBLE_ENGINE", metadata={"retry_after_ms": "70", "engine": "vllm"}
        ),
        error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type="ENGINE", subject="gpu-a", description="needs vllm, has llama.cpp"
                )
            ]
        ),
    )

    error = errors.error_of(errors.detail_of(status))

    assert isinstance(error, IncompatibleError)
    assert error.shortfalls == (PoolShortfall("gpu-a", "ENGINE", "needs vllm, has llama.cpp"),)
    assert (error.retry_after_ms, error.metadata["engine"]) == (70, "vllm")


def test_a_fraction_of_a_millisecond_is_rounded_up() -> None:
    """ORCH-3017: the delay is a lower bound, so rounding never shortens it."""
    info = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=1))

    detail = errors.detail_of(_status(grpc.StatusCode.RESOURCE_EXHAUSTED, info))

    assert detail.retry_after_ms == 1001


@pytest.mark.parametrize("broken", [b"\xff\xff\xff", b""])
def test_details_that_cannot_be_decoded_leave_the_plain_error(broken: bytes) -> None:
    """A broken trailer does not hide what happened."""
    trailing = aio.Metadata((errors.STATUS_DETAILS_KEY, broken))
    rpc_error = aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, aio.Metadata(), trailing, details="connection reset"
    )

    error = errors.from_rpc_error(rpc_error, "c-1")

    assert isinstance(error, UnavailableError)
    assert (error.code, error.correlation_id) == ("UNAVAILABLE", "c-1")


def test_the_transports_code_wins_over_the_details() -> None:
    """A proxy may change the code; the reason still decides the class."""
    inner = _status(grpc.StatusCode.UNKNOWN, error_details_pb2.ErrorInfo(reason="ADMISSION_REJECT"))
    trailing = aio.Metadata((errors.STATUS_DETAILS_KEY, inner.SerializeToString()))
    rpc_error = aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, aio.Metadata(), trailing)

    error = errors.from_rpc_error(rpc_error, "c-1")

    assert isinstance(error, RejectedError)
    assert error.code == "RESOURCE_EXHAUSTED"


def test_the_decode_rate_counts_tokens_after_the_first() -> None:
    """The span runs from the first token to the end; without numbers there is no rate."""
    assert Usage(tokens_out=11, decode_time_ms=500).tokens_per_s == 20.0
    assert Usage(tokens_out=11).tokens_per_s is None
    assert Usage().tokens_per_s is None
    assert Usage(tokens_out=11, decode_time_ms=1).tokens_per_s is None
