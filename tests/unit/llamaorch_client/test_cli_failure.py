"""What the command says of errors: what to change, and how it ends."""

from dataclasses import replace

import grpc
import pytest

from llamaorch_client import (
    AccessError,
    DataLossError,
    ErrorDetail,
    IncompatibleError,
    InUseError,
    JobFailedError,
    LlamaOrchError,
    NotFoundError,
    UnavailableError,
)
from llamaorch_client.cli.failure import ExitCode, as_record, exit_code, sentences, span_text
from llamaorch_client.cli.output import plain
from llamaorch_client.errors import PoolShortfall, from_rpc_error
from orchestrator_core.artifacts.refusals import RESOURCE as ARTIFACT_RESOURCE
from orchestrator_core.core.draining import POOL_RESOURCE
from orchestrator_core.core.intake import SESSION_RESOURCE


def test_errors_say_what_to_change_and_keep_stable_keys() -> None:
    """One sentence for people, one record for programs."""
    away = UnavailableError(ErrorDetail("refused", reason="UNAVAILABLE", code="UNAVAILABLE"))
    dropped = JobFailedError(ErrorDetail("dropped", "QUEUE_FULL_DROP_LRU", retry_after_ms=900), "j")

    (sentence,) = sentences(away, "box:7070")
    record = as_record(dropped)

    assert sentence.startswith("box:7070 does not answer")
    assert (exit_code(away), exit_code(dropped)) == (ExitCode.UNAVAILABLE, ExitCode.JOB_FAILED)
    assert sentences(dropped, "")[0].endswith("try again in 900 ms")
    assert (record["kind"], record["retry_after_ms"]) == ("JobFailed", 900)
    assert plain(record) == record


def test_what_pools_lack_is_told_once() -> None:
    """The server's message has it in one line; here each pool has its own."""
    lacks = PoolShortfall("gpu-a", "CONTEXT", "needs 8192, offers 2048")
    detail = ErrorDetail("none of the 1 registered pools (gpu-a: ...)", "INCOMPATIBLE_MODEL")

    told = sentences(IncompatibleError(replace(detail, shortfalls=(lacks,))), "box:7070")
    bare = sentences(IncompatibleError(detail), "box:7070")

    assert told == [
        "no pool can ever serve the job:",
        "  gpu-a: CONTEXT: needs 8192, offers 2048",
    ]
    assert bare == [f"no pool can ever serve the job: {detail.message}"]


def test_what_many_pools_lack_is_a_line() -> None:
    """On a large fleet as well: not a line a pool."""
    lacks = tuple(
        PoolShortfall(f"gpu-{n:02d}", "CONTEXT", f"needs 8192, offers {2048 if n else 1024}")
        for n in range(100)
    )
    detail = ErrorDetail("none of the 100 registered pools", "INCOMPATIBLE_MODEL")

    told = sentences(IncompatibleError(replace(detail, shortfalls=lacks)), "box:7070")

    assert told == [
        "no pool can ever serve the job:",
        "  gpu-01, gpu-02, gpu-03 +96: CONTEXT: needs 8192, offers 2048",
        "  gpu-00: CONTEXT: needs 8192, offers 1024",
    ]


def test_memory_that_no_pool_has_is_told_in_gib() -> None:
    """Nobody counts the digits of bytes."""
    lacks = (PoolShortfall("p", "VRAM_TOTAL", f"needs {24 << 30}, offers {8 << 30}"),)
    detail = ErrorDetail("none", "INCOMPATIBLE_DEVICE_MASK")

    assert sentences(IncompatibleError(replace(detail, shortfalls=lacks)), "box:7070")[1:] == [
        "  p: VRAM_TOTAL: needs 24.0 GiB, offers 8.0 GiB"
    ]


def test_what_to_change_is_told_before_what_pools_lack() -> None:
    """A job that is too long is told which field of it."""
    lacks = (PoolShortfall("p", "CONTEXT", "needs 100157, offers 2048"),)
    detail = ErrorDetail("spec.sampling.max_tokens must be at most 1891", "INCOMPATIBLE_MODEL")

    assert sentences(IncompatibleError(replace(detail, shortfalls=lacks)), "box:7070") == [
        "no pool can ever serve the job: spec.sampling.max_tokens must be at most 1891",
        "  p: CONTEXT: needs 100157, offers 2048",
    ]


def test_a_mistyped_model_is_answered_with_those_there_are() -> None:
    """In the server's sentence, without what each pool has instead."""
    lacks = tuple(PoolShortfall(f"p{n}", "MODEL", "needs tinny, offers tiny") for n in range(9))
    message = "no registered pool has model 'tinny': there are tiny"
    detail = ErrorDetail(message, "INCOMPATIBLE_MODEL")

    assert sentences(IncompatibleError(replace(detail, shortfalls=lacks)), "box:7070") == [
        f"no pool can ever serve the job: {message}"
    ]


def unreachable(raw: str) -> LlamaOrchError:
    """What the library makes of gRPC's account."""
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7070: {raw}"
    none = grpc.aio.Metadata()
    return from_rpc_error(
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, text), "", "box:7070"
    )


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("Hostname Verification Check failed.", "its certificate is for another name"),
        ("Failed to create security handshaker.", "one of the files of --ca-file, --client-cert"),
    ],
)
def test_what_is_wrong_with_certificates_says_which(raw: str, told: str) -> None:
    """The server is there: nothing has to be started."""
    away = unreachable(raw)

    (sentence,) = sentences(away, "box:7070")

    assert sentence.startswith(f"box:7070: {told}")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("Failed to connect to remote host: Connection refused", "nobody listens there"),
        ("connect: Connection refused (111)", "nobody listens there"),
        ("Timeout occurred: FD Shutdown", "it took too long"),
        ("Failed to connect to remote host: Permission denied", "Permission denied"),
    ],
)
def test_a_server_that_is_away_is_told_without_the_words_of_grpc(raw: str, told: str) -> None:
    """Neither its kinds of addresses nor its codes; what the system says stays."""
    away = unreachable(raw)

    (sentence,) = sentences(away, "box:7070")

    assert sentence == (
        f"box:7070 does not answer: {told}; start orchestratord (`make up`), or name another "
        "server with --server HOST:PORT or LLORCH_SERVER"
    )


@pytest.mark.parametrize(
    ("resource", "command"),
    [
        ("", "jobs"),
        (SESSION_RESOURCE, "sessions"),
        (POOL_RESOURCE, "pools"),
        (ARTIFACT_RESOURCE, "artifacts list"),
    ],
)
def test_what_is_not_found_is_looked_for_in_its_own_list(resource: str, command: str) -> None:
    """A session is no job."""
    detail = ErrorDetail("no x", "NOT_FOUND", metadata={"resource_type": resource})

    (sentence,) = sentences(NotFoundError(detail), "box:7070")

    assert sentence == f"not found: no x; `llorch {command}` lists what the server knows"


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (InUseError(ErrorDetail("a job needs it", "ARTIFACT_IN_USE")), "a job needs it", 2),
        (DataLossError(ErrorDetail("damaged", "DATA_LOSS")), "damaged", 1),
        (AccessError(ErrorDetail("who?", "UNAUTHENTICATED")), "a token of this server", 2),
        (AccessError(ErrorDetail("no", "PERMISSION_DENIED")), "a token with that role", 2),
    ],
)
def test_what_is_refused_says_what_to_do_and_how_it_ends(
    error: LlamaOrchError, said: str, code: int
) -> None:
    """Sentences for people, without the reason's name; what is asked wrongly exits with 2."""
    (sentence,) = sentences(error, "box:7070")

    assert said in sentence
    assert error.reason not in sentence
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("span_ms", "told"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (99_400, "99.4 s"),
        (99_600, "1m 40s"),
        (725_000, "12m 05s"),
        (5_999_000, "99m 59s"),
        (30_301_100, "8h 25m"),
        (359_999_000, "99h 59m"),
        (360_000_000, "4d 4h"),
    ],
)
def test_spans_are_read_at_a_glance(span_ms: int, told: str) -> None:
    """Nobody divides by 3,600 at night; and a column of eight has room for each."""
    assert span_text(span_ms) == told
    assert len(told) <= 8
