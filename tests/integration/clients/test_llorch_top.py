"""`llorch top` in a terminal: a pseudo-terminal always, tmux where it is installed.

What the pseudo-terminal gets is read frame by frame; tmux also interprets it, as a person's would.
"""

import asyncio
import re
import shutil
import signal
import sys
import uuid
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import decision_pb2, job_pb2, pool_admin_service_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from tests.integration.clients import llorch as command
from tests.integration.clients.pseudo_terminal import POLL_S, WAIT_S, has, terminal
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer

POOL = pool_admin_service_pb2.Pool(
    pool_id="gpu-a",
    host_id="desk",
    connected=True,
    state="READY",
    model_id="tiny",
    slots_total=4,
    slots_free=1,
    devices=[
        pool_admin_service_pb2.PoolDevice(
            device_id="GPU-1",
            name="RTX 3090",
            memory_total_bytes=24 << 30,
            memory_used_bytes=18 << 30,
            utilization_ratio=0.5,
            temperature_celsius=71,
        )
    ],
    tokens_per_s=45.25,
)
DECISION = decision_pb2.Decision(
    job_id="run-1",
    attempt=1,
    decided_at=Timestamp(seconds=98),
    pool_id="gpu-a",
    decided_by="score",
    candidates_total=2,
)


def overview(running: str = "run-1", **fields: object) -> pb.GetOverviewResponse:
    """A server with one waiting, one running and one ended job."""
    waits = job_pb2.Job(
        job_id="wait-1",
        state=job_pb2.JOB_STATE_QUEUED,
        priority=job_pb2.PRIORITY_BATCH,
        queue_position=1,
        predicted_start_ms=2_500,
    )
    runs = job_pb2.Job(
        job_id=running,
        state=job_pb2.JOB_STATE_RUNNING,
        pool_id="gpu-a",
        output_pieces=16,
        expected_tokens=64,
        predicted_end_ms=3_000,
    )
    over = job_pb2.Job(
        job_id="end-1",
        state=job_pb2.JOB_STATE_FINISHED,
        finish_reason=job_pb2.FINISH_REASON_EOS,
        pool_id="gpu-a",
    )
    base: dict[str, object] = {
        "queues": [
            pb.QueueView(priority=job_pb2.PRIORITY_INTERACTIVE),
            pb.QueueView(
                priority=job_pb2.PRIORITY_BATCH,
                waiting=1,
                next=[waits],
                last_predicted_start_ms=2_500,
            ),
        ],
        "queue_capacity": 100,
        "running": [runs],
        "running_total": 1,
        "decisions": [DECISION],
        "ended": [over],
        "ended_total": 1,
        "observed_at": Timestamp(seconds=100),
    }
    return pb.GetOverviewResponse(**(base | fields))  # type: ignore[arg-type]


EXPLANATION = pb.ExplainJobResponse(
    job=job_pb2.Job(job_id="wait-1", state=job_pb2.JOB_STATE_QUEUED, model_id="tiny"),
    waiting_for=[
        decision_pb2.Exclusion(
            pool_id="gpu-a",
            shortfalls=[decision_pb2.Shortfall(reason=decision_pb2.EXCLUSION_REASON_NO_SLOT)],
        )
    ],
)


def serve(server: ScriptedServer) -> None:
    """Answers everything that the command asks."""
    watched = [pool_admin_service_pb2.WatchPoolsResponse(pools=[POOL])]
    server.on("WatchPools", [watched, Hang()])
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[POOL]))
    server.on("GetOverview", overview())
    server.on("ExplainJob", EXPLANATION)


async def test_top_shows_all_sections_and_gives_the_terminal_back(server: ScriptedServer) -> None:
    """Bars, queue with ETA, progress, decision and end; q ends it as if it had not been there."""
    serve(server)

    async with terminal(server.address) as shown:
        # The pools come by a call of their own: their memory is in no other section.
        frame = await shown.until(has("18.0/24.0", "run-1", "end-1"))
        raw = not shown.echoes
        shown.keys(b"q")
        code = await shown.ended()
        echoes = shown.echoes

    text = "\n".join(frame)
    for words in ("18.0/24.0", "50%", "71 C", "batch: 1 waiting, the last starts in 2.5 s"):
        assert words in text
    for words in ("16/64", "3.0 s", "→ gpu-a", "FINISHED eos", "1 running, 1 waiting"):
        assert words in text
    assert len(frame) == 24
    assert (raw, code, echoes) == (True, 0, True)
    # The shell's screen is back, with its cursor.
    assert shown.output.rstrip().endswith((b"\x1b[?1049l\x1b[?25h", b"\x1b[?25h\x1b[?1049l"))


def side_by_side(frame: list[str]) -> bool:
    """True where there was room for two columns of sections."""
    return any("POOLS 1" in line and "DECISIONS" in line for line in frame)


async def test_top_follows_the_size_of_the_terminal(server: ScriptedServer) -> None:
    """The next frame has the new size, also where it is tiny."""
    serve(server)

    async with terminal(server.address) as shown:
        await shown.until(has("gpu-a", "run-1"))
        shown.resize(160, 40)
        wide = await shown.until(lambda frame: len(frame) == 40 and side_by_side(frame))
        shown.resize(30, 6)
        tiny = await shown.until(lambda frame: len(frame) == 6)

    assert max(len(line.rstrip()) for line in wide) <= 160
    assert max(len(line) for line in tiny) <= 30


async def test_top_explains_the_selected_job(server: ScriptedServer) -> None:
    """Arrow, e: the pane tells why the job waits; escape goes back."""
    serve(server)

    async with terminal(server.address) as shown:
        await shown.until(has("wait-1"))
        shown.keys(b"\x1b[B")
        await shown.until(lambda frame: any(line.startswith("> wait-1") for line in frame))
        shown.keys(b"e")
        pane = await shown.until(has("why: job wait-1", "WAITS BECAUSE", "NO_SLOT"))
        seen = len(shown.frames())
        shown.keys(b"\x1b")
        await shown.until(lambda _: any(has("> wait-1")(f) for f in shown.frames()[seen:]))

    assert any("esc back" in line for line in pane)
    assert {call.request.job_id for call in server.made("ExplainJob")} == {"wait-1"}


async def test_top_explains_a_waiting_job_until_it_has_a_pool(server: ScriptedServer) -> None:
    """Why it waits is told anew, and is no answer any more once it runs."""
    serve(server)
    placed = pb.ExplainJobResponse(
        job=job_pb2.Job(job_id="wait-1", state=job_pb2.JOB_STATE_RUNNING), decisions=[DECISION]
    )
    server.on("ExplainJob", EXPLANATION, EXPLANATION, placed)

    async with terminal(server.address, "--interval-s", "0.2") as shown:
        await shown.until(has("wait-1"))
        shown.keys(b"j\r")
        await shown.until(has("WAITS BECAUSE"))
        frame = await shown.until(has("ATTEMPT 1"))

    assert "WAITS BECAUSE" not in "\n".join(frame)
    assert len(server.made("ExplainJob")) == 3


async def test_top_explains_a_job_once_the_server_answers(server: ScriptedServer) -> None:
    """As it does with all else: nobody has to leave the pane and come back."""
    serve(server)
    away = Failure(grpc.StatusCode.UNAVAILABLE)
    # A call that fails so is made three times.
    server.on("ExplainJob", away, away, away, EXPLANATION)

    async with terminal(server.address, "--interval-s", "0.2") as shown:
        await shown.until(has("wait-1"))
        shown.keys(b"j\r")
        await shown.until(has("why: job wait-1", "does not answer"))
        frame = await shown.until(has("WAITS BECAUSE"))

    assert "does not answer" not in "\n".join(frame)


async def test_top_pauses_and_sorts(server: ScriptedServer) -> None:
    """While paused newer answers are not shown, afterwards the newest is."""
    serve(server)

    async with terminal(server.address, "--interval-s", "0.1") as shown:
        await shown.until(has("run-1", "RUNNING 1 by start"))
        shown.keys(b"s")
        await shown.until(has("RUNNING 1 by eta"))
        shown.keys(b"p")
        await shown.until(has("PAUSED"))
        server.on("GetOverview", overview("newer"))
        asked = len(server.made("GetOverview"))
        async with asyncio.timeout(WAIT_S):
            await server.wait_for("GetOverview", asked + 3)
        still = not any(has("newer")(frame) for frame in shown.frames())
        shown.keys(b"p")
        await shown.until(has("newer"))

    assert still


async def test_top_says_that_the_server_is_away_and_goes_on_when_it_is_back(
    server: ScriptedServer,
) -> None:
    """What was known stays on the screen; a restarted server on the same port is found again."""
    serve(server)

    async with terminal(server.address, "--interval-s", "0.1") as shown:
        await shown.until(has("run-1"))
        await server.stop()
        away = await shown.until(has("trying again", "run-1", "gpu-a"))
        async with ScriptedServer(server.port) as again:
            serve(again)
            again.on("GetOverview", overview("after"))
            back = await shown.until(lambda f: has("after")(f) and "trying again" not in f[0])

    assert "does not answer" in away[0]
    assert "1 running" in back[0]


async def test_top_says_that_a_server_which_hangs_does_not_answer(server: ScriptedServer) -> None:
    """The connection stands, and nothing comes: what is shown is told as of then."""
    serve(server)
    server.on("GetOverview", overview(), Hang())

    async with terminal(server.address, "--interval-s", "0.2") as shown:
        await shown.until(has("1 running, 1 waiting"))
        frame = await shown.until(has("does not answer: shown is"))

    assert server.address in frame[0]
    assert "run-1" in "\n".join(frame)


async def test_top_without_colours_and_on_a_dumb_terminal(server: ScriptedServer) -> None:
    """NO_COLOR leaves only weight and inversion; a dumb terminal gets lines without sequences."""
    serve(server)

    async with terminal(server.address, NO_COLOR="1") as shown:
        await shown.until(has("run-1", "gpu-a"))
        coloured = re.findall(rb"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38;)[0-9;]*m", shown.output)
    async with terminal(server.address, TERM="dumb") as dumb:
        await dumb.until_written(b"run-1", b"gpu-a")
        dumb.keys(b"q")
        code = await dumb.ended()

    assert coloured == []
    assert b"\x1b" not in dumb.output
    assert code == 0


async def test_top_gives_the_terminal_back_on_a_signal(server: ScriptedServer) -> None:
    """Ctrl-C and SIGTERM leave no raw terminal behind; an old server is a clear error."""
    serve(server)

    codes = []
    for number in (signal.SIGINT, signal.SIGTERM):
        async with terminal(server.address) as shown:
            await shown.until(has("run-1"))
            shown.process.send_signal(number)
            codes.append((await shown.ended(), shown.echoes))
    server.on("GetOverview", Failure(grpc.StatusCode.UNIMPLEMENTED, message="no such method"))
    async with terminal(server.address) as old:
        codes.append((await old.ended(), old.echoes))

    assert codes == [(130, True), (143, True), (1, True)]
    assert b"does not know this command (no such method)" in old.output


async def test_top_ends_with_its_terminal(server: ScriptedServer) -> None:
    """Whoever closes the window leaves nothing that goes on, and nothing that broke."""
    serve(server)

    async with terminal(server.address) as shown:
        await shown.until(has("run-1"))
        shown.hang_up()
        code = await shown.ended()

    assert code == 129


async def test_top_once_writes_plain_lines_into_a_pipe(server: ScriptedServer) -> None:
    """For scripts and reports: all rows, no sequence; JSON has both answers."""
    serve(server)

    piped = await command.llorch(server.address, "top", COLUMNS="100", PYTHONUTF8="1")
    record = (await command.llorch(server.address, "--json", "top")).records()[0]

    assert piped.code == 0
    assert "\x1b" not in piped.stdout
    for words in ("gpu-a", "wait-1", "16/64", "end-1"):
        assert words in piped.stdout
    assert max(map(len, piped.stdout.splitlines())) <= 100
    assert record["overview"]["running"][0]["output_pieces"] == 16
    assert record["pools"][0]["pool_id"] == "gpu-a"


@pytest.mark.parametrize("odd", ["0", "1" * 30, "-5", "wide"])
async def test_top_takes_no_odd_width_for_one(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    """COLUMNS is anybody's: a line of as many spaces would not fit into memory."""
    monkeypatch.setenv("COLUMNS", odd)
    serve(server)

    told = await command.within(server.address, "top")

    assert told.code == 0
    assert max(map(len, told.stdout.splitlines())) <= 80


TMUX = shutil.which("tmux")


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed; `make tools-tmux` does it")
async def test_top_in_tmux(server: ScriptedServer, tmp_path: Path) -> None:
    """A terminal that a person uses: frames replace one another, also after a change of size."""
    serve(server)
    socket = f"llorch-{uuid.uuid4().hex[:8]}"

    async def tmux(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(TMUX),
            "-L",
            socket,
            "-f",
            "/dev/null",
            *arguments,
            env=command.environment(server.address, LC_ALL="C.UTF-8", TMUX_TMPDIR=str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def until(*words: str) -> str:
        async with asyncio.timeout(WAIT_S):
            while True:
                screen = await tmux("capture-pane", "-p")
                if all(word in screen for word in words):
                    return screen
                await asyncio.sleep(POLL_S)

    program = f"{sys.executable} -m llorch top; echo gone; cat"
    await tmux("new-session", "-d", "-x", "80", "-y", "24", program)
    try:
        first = await until("gpu-a", "run-1", "end-1")
        await tmux("send-keys", "Down", "Enter")
        await until("why: job wait-1", "NO_SLOT")
        await tmux("resize-window", "-x", "170", "-y", "30")
        await tmux("send-keys", "Escape")
        wide = await until("POOLS 1", "DECISIONS")
        await tmux("send-keys", "q")
        after = await until("gone")
    finally:
        await tmux("kill-server")

    assert first.count("POOLS 1") == 1
    assert len(first.rstrip("\n").split("\n")) == 24
    assert wide.count("POOLS 1") == 1
    # The screen of before is back, without anything of the program.
    assert "POOLS" not in after
