"""A server whose configuration file tests change while it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from llamaorch.orchestrator.v1 import config_service_pb2 as pb
from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.server import OrchestratorServer
from orchestrator_core.store.port import Store
from tests.integration.orchestrator.conftest import Orchestrator

BASE = 'listen = "127.0.0.1:0"\n[store]\nkind = "memory"\n'


class Reloadable(Orchestrator):
    """A running server, its file, and what it takes to change it."""

    def __init__(self, server: OrchestratorServer, channel: grpc.aio.Channel, file: Path) -> None:
        super().__init__(server, channel)
        self.file = file

    async def change(self, text: str, *, dry_run: bool = False) -> pb.ReloadConfigResponse:
        """Writes another file and has it read."""
        self.file.write_text(text, encoding="utf-8")
        return await self.config.ReloadConfig(pb.ReloadConfigRequest(dry_run=dry_run))

    async def apply(self, text: str) -> None:
        """Changes what must need no restart."""
        answer = await self.change(text)
        assert not answer.problems, answer.problems
        assert answer.applied
        assert not answer.needs_restart


@asynccontextmanager
async def reloadable(
    folder: Path, text: str = BASE, store: Store | None = None, token: str = ""
) -> AsyncIterator[Reloadable]:
    """Starts a server on a file; `token` is that of an operator, where it asks for one."""
    file = folder / "orchestratord.toml"
    file.write_text(text, encoding="utf-8")
    source = ConfigSource(file, {})
    server = OrchestratorServer(source.read(), store, source)
    await server.start()
    interceptors = [_Bearer(token), _StreamBearer(token)] if token else []
    channel = grpc.aio.insecure_channel(str(server.address), interceptors=interceptors)
    running = Reloadable(server, channel, file)
    try:
        yield running
    finally:
        await running.close()


class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):
    """Shows a token with every unary call."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        """Adds it."""
        return await continuation(details._replace(metadata=self._metadata), request)


class _StreamBearer(grpc.aio.StreamStreamClientInterceptor):
    """Shows a token with every stream, for scripted hosts."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def intercept_stream_stream(self, continuation, details, requests):  # type: ignore[no-untyped-def]
        """Adds it."""
        return await continuation(details._replace(metadata=self._metadata), requests)
