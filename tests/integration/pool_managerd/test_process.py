"""The real command: a process of its own, its log lines, its signals, its exit codes."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpc import aio

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from pool_managerd.models.tiny_gguf import write_tiny_model
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator
from tests.slow_import import environment_with_slow

CONFIG = """
orchestrator = "{orchestrator}"
listen = "127.0.0.1:0"
devices = "cpu"
shutdown_grace_ms = 20000
[[pools]]
pool_id = "p0"
[pools.engine]
kind = "mock"
model_id = "m"
script = {{ token_count = 1000000, token_interval_ms = 10 }}
"""


@dataclass
class Command:
    """A running `pool-managerd`; `lines` are the log lines read so far."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, object]] = field(default_factory=list)

    async def logged(self, event: str) -> dict[str, object]:
        """Reads until a line with `event`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            async for raw in self.process.stderr:
                self.lines.append(json.loads(raw))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"the process ended before it logged {event}")

    async def exit_code(self) -> int:
        """Waits for the end."""
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()


@pytest.fixture
async def command(orchestrator: FakeOrchestrator, tmp_path: Path) -> AsyncIterator[Command]:
    """`python -m pool_managerd` against the scripted orchestrator."""
    config = tmp_path / "pool-managerd.toml"
    config.write_text(CONFIG.format(orchestrator=orchestrator.address), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pool_managerd",
        "--config",
        str(config),
        stderr=asyncio.subprocess.PIPE,
    )
    yield Command(process)
    if process.returncode is None:
        process.kill()
        await process.wait()


async def start_job(orchestrator: FakeOrchestrator, max_tokens: int) -> None:
    """Starts one job and waits for its first token."""
    await orchestrator.until(orchestrator.ready)
    snapshot = orchestrator.ready()
    assert snapshot is not None
    orchestrator.send(
        start=dispatch_pb2.StartAttempt(
            handle=1,
            job_id="j1",
            attempt=1,
            pool_id="p0",
            replica_id=snapshot.replica_id,
            input=job_pb2.JobInput(text="a secret prompt"),
            sampling=job_pb2.Sampling(seed=1, max_tokens=max_tokens),
        )
    )
    await orchestrator.until(lambda: orchestrator.stored(1).text)


async def test_sigterm_drains_and_exits_with_0(
    orchestrator: FakeOrchestrator, command: Command
) -> None:
    """The running attempt finishes, its end arrives, the exit code is 0. OC-CTRL-2002."""
    listening = await command.logged("listening")
    async with aio.insecure_channel(str(listening["address"])) as channel:
        answer = await PoolManagerServiceStub(channel).GetSnapshots(
            manager_pb2.GetSnapshotsRequest(), timeout=WAIT_S
        )
    assert [pool.pool_id for pool in answer.pools] == ["p0"]
    await start_job(orchestrator, max_tokens=30)

    command.process.send_signal(signal.SIGTERM)
    await command.logged("stopped")

    assert await command.exit_code() == 0
    ended = orchestrator.stored(1).ended[0]
    assert ended.finish_reason == job_pb2.FINISH_REASON_LENGTH
    assert ended.text_bytes == len(orchestrator.stored(1).text.encode())
    assert "secret" not in str(command.lines)


async def test_a_second_signal_does_not_wait(
    orchestrator: FakeOrchestrator, command: Command
) -> None:
    """SIGINT after SIGTERM stops a host whose attempt would go on for long."""
    await start_job(orchestrator, max_tokens=100_000)

    command.process.send_signal(signal.SIGTERM)
    await command.logged("draining")
    command.process.send_signal(signal.SIGINT)

    assert await command.exit_code() == 0
    assert orchestrator.sessions[-1].frames


async def test_a_killed_host_comes_back_as_another_boot(
    orchestrator: FakeOrchestrator, command: Command, tmp_path: Path
) -> None:
    """After kill -9 the stream breaks; the next run has another boot and replica id. LO-305."""
    await start_job(orchestrator, max_tokens=100_000)
    replica_id = orchestrator.ready().replica_id  # type: ignore[union-attr]  # reason: it was ready

    command.process.kill()
    await command.exit_code()
    again = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pool_managerd", "--config", str(tmp_path / "pool-managerd.toml"),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await orchestrator.until(lambda: len(orchestrator.sessions) == 2)
    again.kill()
    await again.wait()

    first, second = (session.register for session in orchestrator.sessions)
    assert first.boot_id != second.boot_id
    assert second.pools[0].replica_id != replica_id
    assert second.held == []


async def test_sighup_starts_a_pool_that_had_given_up(
    orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """The operator puts the model where it belongs and sends the signal. ORCH-3053."""
    config = tmp_path / "pool-managerd.toml"
    head = CONFIG.partition("[[pools]]")[0].format(orchestrator=orchestrator.address)
    config.write_text(
        f'{head}[supervision]\nstorm_failures = 1\n[[pools]]\npool_id = "p0"\n[pools.engine]\n'
        'kind = "embedded"\nmodel_path = "tiny.gguf"\nmodel_id = "m"\n',
        encoding="utf-8",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pool_managerd", "--config", str(config),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    command = Command(process)
    try:
        failed = await command.logged("replica_failed")
        halted = await command.logged("pool_halted")
        write_tiny_model(tmp_path / "tiny.gguf")
        process.send_signal(signal.SIGHUP)
        await orchestrator.until(orchestrator.ready)
        process.terminate()
        code = await command.exit_code()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert "The engine of pool p0 did not start: " in str(failed["human"])
    assert "tiny.gguf does not exist" in str(halted["human"])
    assert "SIGHUP" in str(halted["human"])
    assert code == 0


async def test_sighup_changes_what_needs_no_restart(
    orchestrator: FakeOrchestrator, command: Command, tmp_path: Path
) -> None:
    """A mistake first, then the right file; the running attempt goes on. HME-003."""
    config = tmp_path / "pool-managerd.toml"
    text = config.read_text(encoding="utf-8")
    await start_job(orchestrator, max_tokens=100_000)

    config.write_text(f"log_levell = 1\n{text}", encoding="utf-8")
    command.process.send_signal(signal.SIGHUP)
    refused = await command.logged("config_reload")
    config.write_text(text.replace("20000", "1"), encoding="utf-8")
    command.process.send_signal(signal.SIGHUP)
    applied = await command.logged("config_reload")
    told = len(orchestrator.stored(1).text)
    await orchestrator.until(lambda: len(orchestrator.stored(1).text) > told)
    command.process.terminate()

    assert "log_levell: unknown key; did you mean" in str(refused["human"])
    assert applied["changed"] == ["shutdown_grace_ms: 20000 -> 1"]
    assert await command.exit_code() == 0


async def test_sighup_during_a_start_ends_nothing_and_counts_later(
    orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """A library stands in the way of the imports. To systemd, an end by SIGHUP is a regular one."""
    config = tmp_path / "pool-managerd.toml"
    config.write_text(CONFIG.format(orchestrator=orchestrator.address), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pool_managerd", "--config", str(config),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment_with_slow(tmp_path / "slow", "aiohttp"),
    )  # fmt: skip
    command = Command(process)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"\n")
        reloaded = await command.logged("config_reload")
        process.terminate()
        code = await command.exit_code()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (reloaded["outcome"], code) == ("unchanged", 0)
