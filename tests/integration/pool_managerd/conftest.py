"""One pool manager against one scripted orchestrator, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator, ScriptedEngine
from tests.integration.pool_managerd.harness import Host, Options, RunHost, make_config


@pytest.fixture
async def orchestrator() -> AsyncIterator[FakeOrchestrator]:
    """A scripted orchestrator on a free port."""
    fake = FakeOrchestrator()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def run_host(orchestrator: FakeOrchestrator) -> AsyncIterator[RunHost]:
    """Starts a pool manager with scripted engines; stops it after the test."""
    hosts: list[Host] = []

    async def run(options: Options | None = None) -> Host:
        wanted = options or Options()
        engines: list[ScriptedEngine] = []
        model_refs: list[str] = []

        def make_engine(_table: PoolTable, model_ref: str) -> ScriptedEngine:
            model_refs.append(model_ref)
            engine = ScriptedEngine(wanted.slots, deterministic=wanted.deterministic)
            wanted.prepare(engine, len(engines))
            engines.append(engine)
            return engine

        config = make_config(orchestrator.address, **wanted.config)
        manager = PoolManager(config, engine_factory=make_engine, devices=CpuDevices())
        host = Host(orchestrator, manager, asyncio.create_task(manager.run()), engines, model_refs)
        hosts.append(host)
        async with asyncio.timeout(WAIT_S):
            await manager.listening.wait()
        await orchestrator.until(lambda: orchestrator.sessions)
        return host

    yield run
    for host in hosts:
        host.manager.stop()
        async with asyncio.timeout(WAIT_S):
            await host.task
