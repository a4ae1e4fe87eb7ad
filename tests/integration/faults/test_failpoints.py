"""A run of both services passes every failpoint: each one can be killed at."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator_core.failpoints
import pool_managerd.failpoints
from llamaorch_client import AsyncClient, Sampling, Tokens
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from pool_managerd.config.schema import Config as PoolConfig
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager

WAIT_S = 20.0
SERVICES = (orchestrator_core.failpoints, pool_managerd.failpoints)


class Passed:
    """The points that were passed; `all` is set once none is missing."""

    def __init__(self) -> None:
        self.missing = {(module.__name__, name) for module in SERVICES for name in module.POINTS}
        self.all = asyncio.Event()

    def note(self, service: str, name: str) -> None:
        """Called at each point."""
        self.missing.discard((service, name))
        if not self.missing:
            self.all.set()


@pytest.fixture
def passed() -> Iterator[Passed]:
    """Watches both services."""
    passed = Passed()
    for module in SERVICES:
        module.watch(lambda name, service=module.__name__: passed.note(service, name))
    yield passed
    for module in SERVICES:
        module.watch(None)


async def test_a_run_passes_every_point(tmp_path: Path, passed: Passed) -> None:
    """Jobs that finish and are cancelled, an artifact put and deleted, retention, and a drain."""
    server = OrchestratorServer(
        Config.model_validate(
            {
                "listen": "127.0.0.1:0",
                "store": {"path": str(tmp_path / "journal.db"), "prune_every_ms": 100},
                "jobs": {"retention_ms": 100, "idempotency_ttl_ms": 100},
                "recorder": {"enabled": False},
            }
        )
    )
    await server.start()
    manager = PoolManager(
        PoolConfig.model_validate(
            {
                "orchestrator": str(server.address),
                "listen": "127.0.0.1:0",
                "devices": "cpu",
                "pools": [{"pool_id": "mock", "engine": {"kind": "mock"}}],
            }
        ),
        devices=CpuDevices(),
    )
    managing = asyncio.create_task(manager.run())
    try:
        async with AsyncClient(str(server.address)) as client, asyncio.timeout(WAIT_S):
            await client.run(model_id="mock", prompt="whole").result()
            await _cancelled(client)
            artifact, _ = await client.artifacts.put(b"a plan")
            await client.artifacts.delete(artifact.artifact_id)
            await passed.all.wait()
    except TimeoutError:
        pass
    finally:
        manager.stop()
        await managing
        await server.stop()

    assert passed.missing == set()


async def _cancelled(client: AsyncClient) -> None:
    """Cancels a job once it has given output."""
    slow = {"mock": {"token_count": 1_000, "token_interval_ms": 20}}
    async for event in (
        stream := client.run(model_id="mock", prompt="half", sampling=Sampling(engine_options=slow))
    ):
        if isinstance(event, Tokens):
            await client.cancel(stream.job_id)
