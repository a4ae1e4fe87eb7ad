"""What the command writes where, without a server."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest

from llamaorch.pool.v1 import snapshot_pb2
from llamaorch_client import (
    AccessError,
    DataLossError,
    ErrorDetail,
    IncompatibleError,
    InUseError,
    JobFailedError,
    LlamaOrchError,
    NotFoundError,
    Queued,
    Started,
    Tokens,
    UnavailableError,
)
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.devices import DeviceRow, merged, of_snapshot
from llamaorch_client.cli.failure import ExitCode, as_record, exit_code, sentences, span_text
from llamaorch_client.cli.output import Output, plain, printable
from llamaorch_client.cli.progress import Progress
from llamaorch_client.errors import PoolShortfall, from_rpc_error
from orchestrator_core.artifacts.refusals import RESOURCE as ARTIFACT_RESOURCE
from orchestrator_core.core.draining import POOL_RESOURCE
from orchestrator_core.core.intake import SESSION_RESOURCE


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_of_a_job_do_not_reach_a_terminal() -> None:
    """A model's output cannot rewrite the reader's screen, and line breaks stay."""
    screen = _Terminal()

    Output(False, screen, io.StringIO()).token_text("a\x1b[31m\tb\r\nc\x9b")

    assert screen.getvalue() == "a[31m\tb\nc"
    assert printable("\u2028ok\x7f") == "\u2028ok"


def test_a_pipe_gets_the_output_as_it_is_and_no_progress_line() -> None:
    """Bytes for programs are not filtered; a line that rewrites itself is for people."""
    stdout, stderr = io.StringIO(), io.StringIO()
    out = Output(False, stdout, stderr)

    out.progress("running")
    out.token_text("a\x1b[31m")
    out.say("done")

    assert stdout.getvalue() == "a\x1b[31m"
    assert stderr.getvalue() == "done\n"


def test_the_summary_begins_on_a_line_of_its_own_on_a_terminal() -> None:
    """Text without a final line break is not glued to what is said about it."""
    screen = _Terminal()
    out = Output(False, screen, io.StringIO())

    out.token_text("no newline")
    out.say("done")

    assert screen.getvalue() == "no newline\n"


def test_records_are_one_line_of_json_with_instants_in_utc() -> None:
    """Text stays text; a line break inside it does not break the record."""
    stdout = io.StringIO()

    Output(True, stdout, io.StringIO()).record(
        {"at": datetime(2030, 1, 2, tzinfo=UTC), "text": "ü\n", "items": ((1, None),)}
    )

    assert stdout.getvalue().count("\n") == 1
    assert json.loads(stdout.getvalue()) == {
        "at": "2030-01-02T00:00:00Z",
        "text": "ü\n",
        "items": [[1, None]],
    }


def test_the_progress_line_follows_the_job() -> None:
    """State, position and ETA while waiting; pool, tokens and rate while running."""
    progress = Progress("job-1")
    waiting = Queued(queue_position=3, predicted_start_ms=1500, predicted_end_ms=None)
    running = Started(
        queue_position=3,
        predicted_start_ms=None,
        queue_time_ms=0,
        pool_id="gpu-a",
        replica_id="r",
        attempt=1,
        kv_warmth=False,
        seed=1,
        engine="e",
        engine_version="1",
    )

    progress.update(waiting, 0)
    first = progress.line()
    progress.update(running, 0)
    for now_ms in (1_000, 3_000):
        progress.update(
            Tokens(attempt=1, first_index=0, text_offset=0, pieces=("a", "b", "c")), now_ms
        )

    assert first == "job-1  queued  position 3  starts in 1.5 s"
    # The three of the first batch came before the time began.
    assert progress.line() == "job-1  running  gpu-a  6 tokens  1.5 tok/s"


def test_a_rate_over_next_to_no_time_is_not_shown() -> None:
    """A short answer that comes in one or two batches has none."""
    progress = Progress("job-1")
    for now_ms in (1_000, 1_002):
        progress.update(Tokens(attempt=1, first_index=0, text_offset=0, pieces=("a",)), now_ms)

    assert progress.line() == "job-1  running  2 tokens"


def test_options_stand_before_or_after_the_command_and_win_over_the_environment() -> None:
    """The last word is the command line's."""
    environ = {"LLORCH_SERVER": "env:1", "LLORCH_TOKEN": "t", "LLORCH_MODEL": "m"}

    before = parse(["--server", "a:1", "pools"], environ)
    after = parse(["pools", "--server", "a:1", "--json"], environ)
    unsaid = parse(["run", "x"], environ)
    bare = parse(["pools"], {})

    assert (before.server, after.server, unsaid.server) == ("a:1", "a:1", "env:1")
    assert (before.json, after.json, unsaid.model, unsaid.token) == (False, True, "m", "t")
    assert (bare.server, bare.token) == ("127.0.0.1:7070", None)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["run", "--max-tokens", "0", "x"],
        ["run", "--deadline-s", "inf", "x"],
        ["run", "--label", "novalue", "x"],
        ["jobs", "--limit", "-1"],
        ["stream"],
    ],
)
def test_usage_errors_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The usage goes to stderr, nothing to stdout."""
    with pytest.raises(SystemExit) as caught:
        parse(argv, {})

    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_the_help_of_wait_s_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    """What is repeated, for how long at the most, what it does not limit, and the default."""
    with pytest.raises(SystemExit):
        parse(["run", "--help"], {})

    said = " ".join(capsys.readouterr().out.split())
    for words in ("refuses it for now", "at most 86400", "neither waiting in the queue", "Default"):
        assert words in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["simulat"], "'simulate'"),
        (
            ["run", "--max-tokens", "few", "x"],
            "must be a whole number from 1 to 4294967295, is 'few'",
        ),
        (["run", "--wait-s", "long", "x"], "must be more than 0"),
    ],
)
def test_a_usage_error_names_what_is_allowed(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of other packages too, and no name of a function."""
    with pytest.raises(SystemExit):
        parse(argv, {})

    assert said in capsys.readouterr().err


def test_a_table_is_not_cut_to_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id stays in one piece, to be copied."""
    monkeypatch.setenv("COLUMNS", "20")
    screen = _Terminal()

    Output(False, screen, io.StringIO()).table("what is there", ("JOB", "AGE"), [("x" * 36, "1 s")])

    assert "what is there" in screen.getvalue()
    assert "x" * 36 + "  1 s" in screen.getvalue()


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


def test_a_live_table_is_for_a_terminal() -> None:
    """Into a pipe it writes nothing, so that the caller prints the table once."""
    screen, pipe = _Terminal(), io.StringIO()

    live = Output(False, screen, io.StringIO())
    shown = live.live_table(("A",), [("one\x1b",)], ["below"])
    live.end_progress()

    assert shown
    assert "one" in screen.getvalue()
    assert "below" in screen.getvalue()
    assert not Output(False, pipe, io.StringIO()).live_table(("A",), [], [])
    assert pipe.getvalue() == ""


def test_devices_of_several_pools_are_one_row() -> None:
    """A device is known by host and id; the pools on it are listed together."""
    rows = [
        DeviceRow(host_id="h2", device_id="GPU-1", pools=("p3 READY",)),
        DeviceRow(host_id="h1", device_id="GPU-1", pools=("p1 READY",)),
        DeviceRow(host_id="h1", device_id="GPU-1", pools=("p2 UNREADY",)),
    ]

    found = merged(rows)

    assert [(row.host_id, row.pools) for row in found] == [
        ("h1", ("p1 READY", "p2 UNREADY")),
        ("h2", ("p3 READY",)),
    ]


def test_the_interval_of_devices_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody asks a server a thousand times a second."""
    with pytest.raises(SystemExit):
        parse(["devices", "--interval-s", "0.001"], {})

    assert "from 0.1 to 3600" in capsys.readouterr().err


def test_a_pool_manager_tells_what_engines_take_beside_what_was_expected() -> None:
    """By the memory that the device uses; the processor, and what shares it, use the host's."""
    snapshot = snapshot_pb2.PoolSnapshot(
        pool_id="p", state=snapshot_pb2.POOL_STATE_READY, perf_scale=0.8
    )
    snapshot.devices.add(device_id="GPU-a", health=snapshot_pb2.DEVICE_HEALTH_OK)
    snapshot.devices.add(device_id="GPU-b", health_detail="it is hot")
    snapshot.devices[1].health = 99  # type: ignore[assignment]
    snapshot.devices.add(device_id="cpu", kind=snapshot_pb2.DEVICE_KIND_CPU)
    gib = 1 << 30
    snapshot.memory_claims.add(memory="GPU-a", estimated_bytes=4 * gib, taken_bytes=5 * gib)
    snapshot.memory_claims.add(memory="host", estimated_bytes=gib)

    first, second, host = of_snapshot(snapshot)

    assert first.pools == ("p READY (at 80%), takes 5.0 GiB (expected 4.0 GiB)",)
    assert second.pools == ("p READY (at 80%)",)
    assert host.pools == ("p READY (at 80%), expected to take 1.0 GiB",)
    assert [row.health for row in (first, second, host)] == ["OK", "", ""]


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
