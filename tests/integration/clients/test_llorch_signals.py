"""The `llorch` command: what Ctrl-C, SIGTERM and a terminal that goes leave behind."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    job_pb2,
    orchestrator_service_pb2,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import environment, finish, start
from tests.integration.clients.scripted_server import Hang, ScriptedServer

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
CANCELLED = orchestrator_service_pb2.CancelResponse(job=wire.job(state=job_pb2.JOB_STATE_CANCELLED))


@pytest.mark.parametrize(("number", "code"), SIGNALS)
async def test_a_signal_during_run_cancels_the_job(
    server: ScriptedServer, number: signal.Signals, code: int
) -> None:
    """The job is cancelled at the server, the command says so, and exits as shells expect it."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", [[wire.started()], Hang()])
    server.on("Cancel", CANCELLED)
    process = await start(server.address, "run", "--model", "tiny", "Hi")
    await server.wait_for("StreamTokens")

    process.send_signal(number)
    outcome = await finish(process)

    assert (outcome.code, outcome.stderr) == (code, "job job-1 cancelled\n")
    assert [call.request.job_id for call in server.made("Cancel")] == ["job-1"]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
async def test_a_signal_during_stream_only_detaches(
    server: ScriptedServer, number: signal.Signals, code: int
) -> None:
    """Somebody else's job is left running; the command says how to come back."""
    server.on("GetJob", orchestrator_service_pb2.GetJobResponse(job=wire.job()))
    server.on("StreamTokens", [[wire.tokens("", ["a"])], Hang()])
    process = await start(server.address, "stream", "job-1")
    await server.wait_for("StreamTokens")

    process.send_signal(number)
    outcome = await finish(process)

    assert outcome.code == code
    assert "left job job-1 running" in outcome.stderr
    assert not server.made("Cancel")


async def test_a_second_sigterm_does_not_wait_for_the_server(server: ScriptedServer) -> None:
    """It has been asked to cancel the job, and does not answer."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", [[wire.started()], Hang()])
    server.on("Cancel", Hang())
    process = await start(server.address, "run", "--model", "tiny", "Hi")
    await server.wait_for("StreamTokens")

    process.send_signal(signal.SIGTERM)
    await server.wait_for("Cancel")
    process.send_signal(signal.SIGTERM)
    outcome = await finish(process)

    assert (outcome.code, outcome.stderr) == (143, "")


async def test_sigterm_ends_any_command_quietly(server: ScriptedServer) -> None:
    """Nothing is left behind by one that only looks."""
    server.on("ListPools", Hang())
    process = await start(server.address, "pools")
    await server.wait_for("ListPools")

    process.send_signal(signal.SIGTERM)
    outcome = await finish(process)

    assert (outcome.code, outcome.stdout, outcome.stderr) == (143, "", "")


async def test_a_second_sigterm_ends_a_command_whose_output_nobody_reads(
    server: ScriptedServer,
) -> None:
    """It stands still in a write, and does not see the first."""
    text = "x" * (1 << 20)
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.tokens("", [text])], Hang()])
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "llorch", "run", "--model", "tiny", "Hi"),
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env=environment(server.address),
    )
    os.close(writing)
    try:
        async with asyncio.timeout(20):
            begun = asyncio.Event()
            asyncio.get_running_loop().add_reader(reading, begun.set)
            await begun.wait()
            asyncio.get_running_loop().remove_reader(reading)
            while process.returncode is None:
                process.send_signal(signal.SIGTERM)
                # Two that come at once are one.
                await asyncio.sleep(0.1)
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reading)

    # One that comes while it puts itself away is not heeded any more.
    assert code in (143, -signal.SIGTERM)


IGNORES = """
import asyncio, os, signal, sys
from llamaorch_client.cli.termination import heeded

async def main():
    with heeded() as come:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print([number.name for number in come])
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)

signal.signal(signal.SIGHUP, signal.SIG_IGN)
asyncio.run(main())
"""


def test_below_nohup_the_end_of_the_terminal_is_nothing() -> None:
    """The signal that is ignored already is left so."""
    ended = subprocess.run(
        [sys.executable, "-c", IGNORES],
        env=environment(""),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (ended.stdout, ended.stderr) == ("['SIGTERM']\nTrue\n", "")


class Endless(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Takes content for as long as some comes."""

    def __init__(self) -> None:
        self.got = asyncio.Queue[bytes]()

    async def PutArtifact(self, request_iterator: Any, _: Any) -> Any:  # noqa: N802 - the stub's name
        """Never answers before the end."""
        async for message in request_iterator:
            if message.WhichOneof("part") == "chunk":
                self.got.put_nowait(message.chunk)
        return artifact_service_pb2.PutArtifactResponse()


@pytest.mark.parametrize(("number", "code"), SIGNALS[:2])
async def test_a_signal_ends_a_command_that_waits_for_input(
    number: signal.Signals, code: int
) -> None:
    """Nobody has to type the end of it first."""
    taking, server = Endless(), grpc.aio.server()
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(taking, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    process = await start(f"127.0.0.1:{port}", "artifacts", "put", "-")
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            process.stdin.write(b"begun")
            assert await taking.got.get() == b"begun"
            process.send_signal(number)
            # Its input stays open, as that of a terminal.
            ended = await process.wait()
            told = await process.stderr.read()
    finally:
        process.stdin.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await server.stop(None)

    assert (ended, told) == (code, b"")
