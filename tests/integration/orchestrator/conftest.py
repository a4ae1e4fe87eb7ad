"""A real orchestratord in process, on port 0, with an in-memory or on-disk journal."""

import io
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import grpc
import pytest
import structlog

from llamaorch.orchestrator.v1 import (
    artifact_service_pb2_grpc,
    catalog_service_pb2_grpc,
    config_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
    policy_service_pb2_grpc,
    pool_admin_service_pb2_grpc,
    session_service_pb2_grpc,
)
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from orchestrator_core.store.port import Store
from orchestrator_core.telemetry.line_sink import configure_logs
from tests.integration.orchestrator.scripted_host import ScriptedHost


class Orchestrator:
    """A running server and ways to reach it."""

    def __init__(self, server: OrchestratorServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.jobs = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
        self.pools = pool_admin_service_pb2_grpc.PoolAdminServiceStub(channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        self.catalog = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        self.policy = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self.config = config_service_pb2_grpc.ConfigServiceStub(channel)
        self._hosts: list[ScriptedHost] = []

    def host(self, host_id: str = "host-1", boot_id: str = "") -> ScriptedHost:
        """A host that has not registered yet."""
        host = ScriptedHost(self.channel, host_id, boot_id or uuid.uuid4().hex)
        self._hosts.append(host)
        return host

    async def close(self) -> None:
        """Ends hosts, channel and server."""
        for host in self._hosts:
            await host.close()
        await self.channel.close()
        await self.server.stop()


StartOrchestrator = Callable[..., Awaitable[Orchestrator]]


@pytest.fixture
async def start_orchestrator() -> AsyncIterator[StartOrchestrator]:
    """Starts servers with any configuration; all are stopped at the end of the test."""
    async with AsyncExitStack() as stack:

        async def start(store: Store | None = None, /, **tables: object) -> Orchestrator:
            tables = {"listen": "127.0.0.1:0", "store": {"kind": "memory"}} | tables
            server = OrchestratorServer(Config.model_validate(tables), store)
            await server.start()
            running = Orchestrator(server, grpc.aio.insecure_channel(str(server.address)))
            stack.push_async_callback(running.close)
            return running

        yield start


@pytest.fixture
async def orchestrator(start_orchestrator: StartOrchestrator) -> Orchestrator:
    """A server with the default bounds and an in-memory journal."""
    return await start_orchestrator()


@pytest.fixture
def entries() -> Iterator[Callable[[str], list[dict[str, object]]]]:
    """Gives the log entries of an event so far."""
    stream = io.StringIO()
    sink = configure_logs("info", "json", stream)

    def of(event: str) -> list[dict[str, object]]:
        sink.flush()
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    yield of
    structlog.reset_defaults()
