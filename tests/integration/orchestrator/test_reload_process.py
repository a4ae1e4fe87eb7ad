"""SIGHUP to a real process: another configuration, the same streams. HME-003, ORCH-3030."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from llamaorch.orchestrator.v1 import config_service_pb2 as pb
from llamaorch.orchestrator.v1 import config_service_pb2_grpc
from llamaorch_client import AsyncClient
from tests.integration.faults.services import host_of, output, rest, slow_job
from tests.slow_import import environment_with_slow

WAIT_S = 20.0
FILE = 'listen = "127.0.0.1:0"\nlog_format = "json"\n[store]\npath = "journal.db"\n'


@dataclass
class Address:
    """As a server in this process has one."""

    address: str


class Process:
    """A running `orchestratord` on a file of its own."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.address = ""

    async def logged(self, event: str) -> dict[str, object]:
        """Reads until a line of that event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            async for raw in self.process.stderr:
                line: dict[str, object] = json.loads(raw)
                if line["event"] == event:
                    return line
        raise AssertionError(f"it ended before it logged {event}")

    async def hang_up(self, text: str) -> dict[str, object]:
        """Writes another file, tells the process, and returns what it says."""
        self.file.write_text(text, encoding="utf-8")
        self.process.send_signal(signal.SIGHUP)
        return await self.logged("config_reload")


@pytest.fixture
async def orchestratord(tmp_path: Path) -> AsyncIterator[Process]:
    """The real command."""
    file = tmp_path / "orchestratord.toml"
    file.write_text(FILE, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator_core", "--config", str(file)),
        stderr=asyncio.subprocess.PIPE,
    )
    running = Process(process, file)
    try:
        running.address = str((await running.logged("listening"))["address"])
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_hang_up_changes_what_is_safe_and_no_stream_notices(orchestratord: Process) -> None:
    """A mistake first, then the right file; the running job loses nothing, and the end comes."""
    at = Address(orchestratord.address)
    async with host_of(at), AsyncClient(at.address) as client:
        stream = slow_job(client, tokens=60)
        head = await output(stream, 3)

        refused = await orchestratord.hang_up(FILE + "[queue]\ncapacity = 0\n")
        applied = await orchestratord.hang_up(
            "shutdown_grace_ms = 1\n" + FILE + "[queue]\ncapacity = 7\n"
        )
        whole = head + await rest(stream)
        again = await rest(slow_job(client, tokens=60))
        unheard = slow_job(client, tokens=100_000)
        await output(unheard, 1)
        orchestratord.process.terminate()
        async with asyncio.timeout(WAIT_S):
            code = await orchestratord.process.wait()

    assert refused["outcome"] == "refused"
    assert "queue.capacity" in str(refused["human"])
    assert applied["outcome"] == "applied"
    assert applied["changed"] == ["shutdown_grace_ms: 30000 -> 1", "queue.capacity: 100 -> 7"]
    assert whole == again
    assert len(whole) > 60
    assert code == 0


async def test_the_level_of_the_log_changes(orchestratord: Process) -> None:
    """What is told from then on is what the new level lets through; a burst of signals is one."""
    quiet = 'log_level = "error"\n' + FILE
    orchestratord.file.write_text(quiet, encoding="utf-8")
    async with grpc.aio.insecure_channel(orchestratord.address) as channel:
        stub = config_service_pb2_grpc.ConfigServiceStub(channel)
        answer = await stub.ReloadConfig(pb.ReloadConfigRequest())
        assert [each.key for each in answer.applied] == ["log_level"]
        for _ in range(20):
            orchestratord.process.send_signal(signal.SIGHUP)
        await stub.GetConfig(pb.GetConfigRequest())

    line = await orchestratord.hang_up(FILE)

    assert line["changed"] == ['log_level: "error" -> "info"']


async def test_a_hang_up_during_a_start_ends_nothing_and_counts_later(tmp_path: Path) -> None:
    """A library stands in the way of the imports. To systemd, an end by SIGHUP is a regular one."""
    file = tmp_path / "orchestratord.toml"
    file.write_text(FILE, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator_core", "--config", str(file)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment_with_slow(tmp_path / "slow", "grpc_health"),
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"\n")
        reloaded = await Process(process, file).logged("config_reload")
        process.terminate()
        async with asyncio.timeout(WAIT_S):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (reloaded["outcome"], code) == ("unchanged", 0)
