"""Which hosts are connected, as tests wait for it."""

import asyncio

from tests.integration.orchestrator.conftest import Orchestrator

PATIENT = {"placement": {"stale_after_ms": 60_000}}
SHORT = {"report_interval_ms": 100, "heartbeat_timeout_ms": 500}


def connected(orchestrator: Orchestrator) -> list[str]:
    """Ids of the hosts with an open stream."""
    return sorted(orchestrator.server.runtime.hosts.links)


async def until_connected(orchestrator: Orchestrator, *host_ids: str) -> None:
    """Waits until exactly these hosts are connected."""
    async with asyncio.timeout(20):
        while connected(orchestrator) != sorted(host_ids):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
