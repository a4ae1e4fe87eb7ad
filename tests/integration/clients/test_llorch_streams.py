"""The `llorch` command with standard streams that are closed, full, or that nobody reads."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from llamaorch_client import AsyncClient, ClientOptions, RetryOptions
from llamaorch_client.cli import access
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.failure import UsageError
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import Outcome, environment, finish
from tests.integration.clients.scripted_server import Hang, ScriptedServer

SHELL = shutil.which("sh") or "/bin/sh"
CANCELLED = orchestrator_service_pb2.CancelResponse(job=wire.job(state=job_pb2.JOB_STATE_CANCELLED))
TOKEN_VARIABLE = "LLORCH_TOKEN"  # noqa: S105 - the name of the variable


async def shell(address: str, line: str) -> Outcome:
    """Runs a line of a shell in which `llorch` is the command."""
    process = await asyncio.create_subprocess_exec(
        SHELL,
        "-c",
        f'llorch() {{ "{sys.executable}" -m llorch "$@"; }}; {line}',
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(address),
    )
    return await finish(process)


async def test_closed_streams_are_empty_ones(server: ScriptedServer) -> None:
    """Each of them; no connection gets their numbers."""
    listed = orchestrator_service_pb2.ListJobsResponse(jobs=[wire.job("job-7")])
    server.on("ListJobs", listed)

    unread = await shell(server.address, "llorch jobs >&-")
    untold = await shell(server.address, "llorch jobs 2>&-")
    unsaid = await shell(server.address, "llorch run --model tiny <&-")

    assert (unread.code, unread.stderr) == (0, "")
    assert untold.code == 0
    assert "job-7" in untold.stdout
    assert (unsaid.code, unsaid.stderr) == (2, "llorch: the prompt on stdin is empty\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_output_that_cannot_be_written_cancels_the_job(server: ScriptedServer) -> None:
    """As a reader that leaves does; said in a sentence."""
    server.on("ListJobs", orchestrator_service_pb2.ListJobsResponse())
    server.on("Enqueue", wire.accepted()).on("Cancel", CANCELLED)
    server.on("StreamTokens", [[wire.tokens("", ["a"])], Hang()])

    run = await shell(server.address, "llorch run --model tiny Hi >/dev/full")
    listed = await shell(server.address, "llorch --json jobs >/dev/full")

    full = "llorch: standard output: No space left on device\n"
    assert (run.code, run.stderr) == (1, "job job-1 cancelled\n" + full)
    assert len(server.made("Cancel")) == 1
    assert (listed.code, listed.stderr) == (1, full)


async def test_messages_that_nobody_reads_leave_no_job_behind(server: ScriptedServer) -> None:
    """`llorch run ... 2>&1 >file | head`: what is said is the first that cannot be written."""
    server.on("Enqueue", wire.accepted()).on("Cancel", CANCELLED)
    server.on("StreamTokens", [[wire.resumed(2)], Hang()])
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "llorch", "run", "--model", "tiny", "Hi"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=writing,
        env=environment(server.address),
    )
    os.close(writing)
    os.close(reading)

    outcome = await finish(process)

    assert outcome.code == 1
    assert len(server.made("Cancel")) == 1


async def test_the_help_may_be_left(server: ScriptedServer) -> None:
    """`llorch --help | head -1`, whoever is quicker."""
    line = "{ sleep 0.1; llorch --help; echo $? >&2; } | true"

    outcome = await shell(server.address, line)

    assert outcome.stderr == "0\n"


async def test_what_is_local_passes_no_proxy(
    server: ScriptedServer, unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTH-1002: the token that is sent in the clear to loopback would leave the machine."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://{unused_address}")
    server.on("GetJob", orchestrator_service_pb2.GetJobResponse(job=wire.job()))
    options = ClientOptions(
        token="t",  # noqa: S106 - not a secret
        retry=RetryOptions(attempts_max=1),
    )

    async with AsyncClient(server.address, options=options) as client:
        found = await client.get_job("job-1")

    assert found.job_id == "job-1"


@pytest.mark.parametrize("token", ["tök", "two\nlines", "\udcff", "a\x7f", "x" * 5_000])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    """AUTH-1008: by the variable's name; the library names its option."""
    with pytest.raises(UsageError, match=f"^{TOKEN_VARIABLE}: holds no token") as caught:
        access.options(parse(["status"], {TOKEN_VARIABLE: token}))

    assert token not in str(caught.value)
    if len(token) < 5_000:
        with pytest.raises(ValueError, match=r"^token must be visible ASCII") as raised:
            ClientOptions(token=token)
        assert token not in str(raised.value)


def test_the_end_of_a_line_is_no_part_of_a_token() -> None:
    """As files of variables leave it."""
    told = access.options(parse(["status"], {TOKEN_VARIABLE: "t-1\r\n"}))

    assert told.token == "t-1"  # noqa: S105 - not a secret
