"""What the command writes where, without a server."""

import io
import json
from datetime import UTC, datetime

import pytest

from llamaorch.pool.v1 import snapshot_pb2
from llamaorch_client import (
    Queued,
    Started,
    Tokens,
)
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.devices import DeviceRow, merged, of_snapshot
from llamaorch_client.cli.output import Output, printable
from llamaorch_client.cli.progress import Progress


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
