"""The error table and the statuses made from it. ORCH-3016, ORCH-3017, ORCH-2007."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.events import AttemptErrorKind
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.wire import errors
from orchestrator_core.wire.errors import (
    DOMAIN,
    ENGINE_ERROR_CODES,
    ERROR_TABLE,
    PUSHBACK_KEY,
    STATUS_BYTES_MAX,
    code_of,
    retriable,
    to_status,
    trailing_metadata,
)
from tests.unit.orchestrator_core.wire.messages import refusals

DOC = Path(__file__).parents[4] / "docs" / "errors.md"
METADATA_BYTES_MAX = 8_192


def details(status: status_pb2.Status) -> dict[str, Any]:
    """The details of a status by their short type name."""
    found = {}
    for packed in status.details:
        name = packed.TypeName().rsplit(".", 1)[-1]
        message = getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        found[name] = message
    assert len(found) == len(status.details)
    return found


def pushback(refusal: Refusal) -> str | None:
    """The pushback that accompanies a refused call."""
    values = [str(value) for key, value in trailing_metadata(refusal) if key == PUSHBACK_KEY]
    return values[0] if values else None


def test_every_reason_has_a_row() -> None:
    """No refusal can lack a code."""
    assert set(ERROR_TABLE) == set(Reason)


def test_every_kind_of_engine_error_has_a_code() -> None:
    """A new kind of failure must be thought about here; the plain one takes the row's code."""
    # The latter is told as WORKER_RESET, which has a code of its own.
    plain = {AttemptErrorKind.ENGINE_ERROR, AttemptErrorKind.OUTPUT_LOST}

    assert set(ENGINE_ERROR_CODES) == {kind.value for kind in set(AttemptErrorKind) - plain}


@given(refusals())
def test_a_status_says_everything_that_the_refusal_says(refusal: Refusal) -> None:
    """Code, reason, domain and metadata arrive whole, each detail once."""
    status = to_status(refusal)
    info = details(status)["ErrorInfo"]

    assert status.code == code_of(refusal).value[0]
    assert (info.reason, info.domain) == (refusal.reason.value, DOMAIN)
    assert info.metadata["retriable"] == str(retriable(refusal)).lower()
    if refusal.reason is Reason.INTERNAL:
        return
    assert status.message == refusal.message
    expected = {"policy_label": refusal.policy_label, "engine": refusal.engine}
    expected |= {"pool_id": refusal.pool_id}
    for key, value in (refusal.metadata | expected).items():
        cut = len(key.encode()) > errors.METADATA_KEY_BYTES_MAX
        if value and not cut and key not in {"retriable", "retry_after_ms"}:
            assert info.metadata[key] == value


@given(refusals())
def test_the_details_are_those_of_the_row(refusal: Refusal) -> None:
    """Each reason carries what its row promises, and nothing else."""
    row = ERROR_TABLE[refusal.reason]
    found = details(to_status(refusal))

    promised = {"ErrorInfo", *row.details}
    if not retriable(refusal) or refusal.retry_after_ms is None:
        promised -= {"RetryInfo"}
    elif refusal.retry_after_ms is not None:
        promised |= {"RetryInfo"}
    if not refusal.violations:
        promised -= {"BadRequest"}
    if not any(exclusion.shortfalls for exclusion in refusal.shortfalls):
        promised -= {"PreconditionFailure"}
    assert set(found) == promised


@given(refusals(text_max=2_000), st.integers(0, 60))
def test_an_error_fits_into_the_metadata_that_grpc_takes(refusal: Refusal, times: int) -> None:
    """However long the texts and lists, a call's error stays below the limit of gRPC stacks."""
    big = Refusal(
        refusal.reason,
        refusal.message,
        refusal.retry_after_ms,
        refusal.policy_label,
        refusal.engine,
        refusal.pool_id,
        refusal.resource,
        refusal.metadata,
        refusal.violations * times,
        refusal.shortfalls * times,
    )

    status = to_status(big)

    assert status.ByteSize() <= STATUS_BYTES_MAX
    encoded = base64.b64encode(status.SerializeToString())
    assert len(encoded) + 3 * len(status.message.encode()) + 200 < METADATA_BYTES_MAX


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("letter", ["x", "ü", "\U0001f600"])
def test_the_largest_error_fits(reason: Reason, letter: str) -> None:
    """With every field at its longest an error still goes through."""
    long = letter * 5_000
    exclusion = Exclusion(long, (Shortfall(ExclusionReason.DEVICE_MASK, long, long),))
    refusal = Refusal(
        reason,
        long,
        retry_after_ms=10**12,
        policy_label=long,
        engine=long,
        pool_id=long,
        resource=long,
        metadata={f"{n}{long}": long for n in range(40)} | {"resource_type": long},
        violations=(FieldViolation(long, long),) * 500,
        shortfalls=(exclusion,) * 500,
    )

    status = to_status(refusal)

    assert status.ByteSize() <= STATUS_BYTES_MAX
    assert "ErrorInfo" in details(status)


def test_violations_that_do_not_fit_are_counted() -> None:
    """A client can tell that the list is not whole."""
    violations = tuple(FieldViolation(f"spec.labels[{n}]", "x" * 100) for n in range(64))
    refusal = Refusal(Reason.INVALID_PARAMS, "many", violations=violations)

    found = details(to_status(refusal))

    kept = len(found["BadRequest"].field_violations)
    assert 10 < kept < 64
    assert found["ErrorInfo"].metadata["violations_omitted"] == str(64 - kept)


def test_all_violations_that_fit_are_there() -> None:
    """Ordinary requests get every bad field."""
    violations = tuple(FieldViolation(f"spec.field_{n}", "must be at least 1") for n in range(20))
    refusal = Refusal(Reason.INVALID_PARAMS, "many", violations=violations)

    found = details(to_status(refusal))

    assert [v.field for v in found["BadRequest"].field_violations] == [v.field for v in violations]
    assert "violations_omitted" not in found["ErrorInfo"].metadata


def test_a_full_queue_says_which_policy_and_when_to_come_back() -> None:
    """Overload is RESOURCE_EXHAUSTED with the delay in three places. ORCH-2007, ORCH-3017."""
    refusal = Refusal(
        Reason.ADMISSION_REJECT, "the queue is full", retry_after_ms=1_250, policy_label="reject"
    )

    status = to_status(refusal)
    found = details(status)

    assert code_of(refusal) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1_250
    assert found["QuotaFailure"].violations[0].description == "reject"
    assert found["ErrorInfo"].metadata == {
        "policy_label": "reject",
        "retriable": "true",
        "retry_after_ms": "1250",
    }
    assert pushback(refusal) == "1250"


def test_a_rejection_without_a_time_is_final() -> None:
    """A budget that is too small stays so: no RetryInfo, the field to change, no retry by gRPC."""
    wrong = FieldViolation("spec.budgets.tokens", "is 5: raise it")
    refusal = Refusal(
        Reason.ADMISSION_REJECT, "too small", policy_label="budget", violations=(wrong,)
    )

    found = details(to_status(refusal))

    assert "RetryInfo" not in found
    assert found["BadRequest"].field_violations[0].field == "spec.budgets.tokens"
    assert found["ErrorInfo"].metadata["retriable"] == "false"
    assert pushback(refusal) == "-1"


def test_a_retry_without_a_known_time_is_left_to_the_client() -> None:
    """A reset worker can be tried again, with the client's own backoff."""
    refusal = Refusal(Reason.WORKER_RESET, "the engine died", metadata={"text_offset": "17"})

    assert code_of(refusal) is grpc.StatusCode.ABORTED
    assert details(to_status(refusal))["ErrorInfo"].metadata == {
        "retriable": "true",
        "text_offset": "17",
    }
    assert pushback(refusal) is None


def test_a_time_does_not_make_a_hopeless_request_retriable() -> None:
    """What the table calls final stays final."""
    refusal = Refusal(Reason.NOT_FOUND, "no such job", retry_after_ms=5)

    found = details(to_status(refusal))

    assert found["ErrorInfo"].metadata["retriable"] == "false"
    assert "RetryInfo" not in found
    assert pushback(refusal) == "-1"


def test_shortfalls_are_told_per_pool() -> None:
    """An incompatible job learns what each pool lacks. LO-201."""
    refusal = Refusal(
        Reason.INCOMPATIBLE_DEVICE_MASK,
        "no pool can serve it",
        shortfalls=(
            Exclusion(
                "a",
                (
                    Shortfall(ExclusionReason.COMPUTE_CAP, "8.6", "7.5"),
                    Shortfall(ExclusionReason.VRAM_TOTAL, "24", "unknown"),
                ),
            ),
            Exclusion("b", (Shortfall(ExclusionReason.CONTEXT, "8192", "4096"),)),
        ),
    )

    violations = details(to_status(refusal))["PreconditionFailure"].violations

    assert [(v.type, v.subject, v.description) for v in violations] == [
        ("COMPUTE_CAP", "a", "needs 8.6, offers 7.5"),
        ("VRAM_TOTAL", "a", "needs 24, offers unknown"),
        ("CONTEXT", "b", "needs 8192, offers 4096"),
    ]


def test_a_missing_job_is_named() -> None:
    """NOT_FOUND and DUPLICATE say of what."""
    found = details(to_status(Refusal(Reason.NOT_FOUND, "no such job", resource="job-1")))

    assert found["ResourceInfo"].resource_name == "job-1"
    assert found["ResourceInfo"].resource_type == "llamaorch.orchestrator.v1.Job"


def test_a_bug_shows_its_trace_and_nothing_else() -> None:
    """Neither message nor metadata of an internal error leaves the process."""
    refusal = Refusal(
        Reason.INTERNAL,
        "KeyError: 'secret prompt'",
        engine="llama.cpp",
        pool_id="p",
        metadata={"trace_id": "ab" * 16, "where": "secret place"},
    )

    status = to_status(refusal)

    assert status.message == f"internal error, trace {'ab' * 16}"
    assert details(status)["ErrorInfo"].metadata == {"retriable": "false", "trace_id": "ab" * 16}
    assert b"secret" not in status.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("invalid_request", grpc.StatusCode.INVALID_ARGUMENT),
        ("context_overflow", grpc.StatusCode.INVALID_ARGUMENT),
        ("device_out_of_memory", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("engine_error", grpc.StatusCode.UNKNOWN),
        ("", grpc.StatusCode.UNKNOWN),
    ],
)
def test_an_engine_error_takes_the_code_of_its_kind(kind: str, code: grpc.StatusCode) -> None:
    """The engine's word decides, and the kind is told. ORCH-3039."""
    refusal = Refusal(Reason.ENGINE_ERROR, "said the engine", metadata={"kind": kind})

    assert to_status(refusal).code == code.value[0]
    assert details(to_status(refusal))["ErrorInfo"].metadata.get("kind", "") == kind


def test_text_that_is_not_unicode_does_not_break_an_error() -> None:
    """A file name with stray bytes ends up readable, not as another error."""
    status = to_status(Refusal(Reason.STORE_UNAVAILABLE, "cannot write \udcff.db"))

    assert status.message == "cannot write ?.db"


# --- over a real connection


@pytest.fixture
async def refusing() -> AsyncIterator[tuple[list[Refusal], grpc.aio.Channel]]:
    """A server that refuses each call with the refusal put into the list."""
    pending: list[Refusal] = []

    async def refuse(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        context.set_trailing_metadata((("x-earlier", "kept"),))
        await errors.abort(context, pending.pop())

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "test.Service", {"Call": grpc.unary_unary_rpc_method_handler(refuse)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pending, channel
    await server.stop(None)


async def test_a_client_reads_every_refusal_from_its_call(
    refusing: tuple[list[Refusal], grpc.aio.Channel],
) -> None:
    """Code, message, details and pushback arrive at the other end for every reason."""
    pending, channel = refusing
    call = channel.unary_unary("/test.Service/Call")

    for reason in Reason:
        refusal = Refusal(reason, f"über {reason.value}", retry_after_ms=70, resource="job-1")
        pending.append(refusal)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")

        error = caught.value
        metadata = dict(error.trailing_metadata())
        assert error.code() is code_of(refusal)
        assert rpc_status.from_call(error) == to_status(refusal)
        assert metadata["x-earlier"] == "kept"
        assert metadata.get(PUSHBACK_KEY) == pushback(refusal)
