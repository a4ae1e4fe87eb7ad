"""Both services in this process with all their metrics, and a way to scrape them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.metrics_core import Metric

from ci.lint_metrics import families
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from pool_managerd.config.schema import Config as PoolConfig
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.devices.port import DeviceSource
from pool_managerd.server import PoolManager

WAIT_S = 20.0
SERVICES = ("orchestratord", "pool-managerd")


@dataclass(slots=True)
class Both:
    """The services by their ports; `orchestrator` may be replaced by a later run of it."""

    orchestrator: OrchestratorServer
    manager: PoolManager

    @property
    def address(self) -> str:
        """Where clients reach the orchestrator."""
        return str(self.orchestrator.address)

    def port(self, service: str) -> int:
        """Port of a service's Prometheus endpoint."""
        part = self.orchestrator if service == "orchestratord" else self.manager
        assert part.metrics_port is not None
        return part.metrics_port

    async def text(self, service: str) -> str:
        """One scrape of a service."""
        return await scrape(f"http://127.0.0.1:{self.port(service)}/metrics")


async def scrape(url: str, accept: str = "text/plain") -> str:
    """One scrape, as Prometheus does it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Accept": accept}) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


def total(found: dict[str, Metric], name: str, **labels: str) -> float:
    """Sum of a counter or gauge over the series that have these labels; 0 without any."""
    family = found.get(name)
    return sum(
        sample.value
        for sample in (family.samples if family else ())
        if labels.items() <= sample.labels.items()
    )


def parsed(text: str) -> dict[str, Metric]:
    """The families of a scrape."""
    return families(text)


async def start_orchestrator(
    directory: Path, listen: str = "127.0.0.1:0", **tables: object
) -> OrchestratorServer:
    """An orchestrator on a journal in `directory`."""
    config = Config.model_validate(
        {
            "listen": listen,
            "metrics_listen": "127.0.0.1:0",
            "store": {"path": str(directory / "journal.db")},
            **tables,
        }
    )
    server = OrchestratorServer(config)
    await server.start()
    return server


@asynccontextmanager
async def both(
    directory: Path, slots: int = 2, devices: DeviceSource | None = None, **tables: object
) -> AsyncIterator[Both]:
    """Both services, one mock pool."""
    orchestrator = await start_orchestrator(directory, **tables)
    config = PoolConfig.model_validate(
        {
            "orchestrator": str(orchestrator.address),
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "devices": "cpu",
            "report_interval_ms": 100,
            "link": {"backoff": {"initial_ms": 20, "cap_ms": 100}},
            "supervision": {"backoff": {"initial_ms": 10, "cap_ms": 50}},
            "pools": [{"pool_id": "mock", "engine": {"kind": "mock", "slots": slots}}],
        }
    )
    manager = PoolManager(config, devices=devices or CpuDevices())
    task = asyncio.create_task(manager.run())
    running = Both(orchestrator, manager)
    try:
        async with asyncio.timeout(WAIT_S):
            await manager.listening.wait()
        yield running
    finally:
        manager.stop()
        await task
        await running.orchestrator.stop()
