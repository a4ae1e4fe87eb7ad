"""Both services in this process, with the mock engine, on any journal."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from llamaorch_client import AsyncClient, Sampling, Tokens
from llamaorch_client.stream import JobStream
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from orchestrator_core.store.port import Store
from pool_managerd.config.schema import Config as PoolConfig
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager


class Listening(Protocol):
    """An orchestrator, in this process or another."""

    @property
    def address(self) -> object:
        """Where it listens; as text it is HOST:PORT."""
        ...


@asynccontextmanager
async def orchestrator(
    journal: Path, store: Store | None = None, **tables: object
) -> AsyncIterator[OrchestratorServer]:
    """A running orchestrator."""
    config = {"listen": "127.0.0.1:0", "store": {"path": str(journal)}, **tables}
    server = OrchestratorServer(Config.model_validate(config), store)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def host_of(server: Listening, slots: int = 2, **tables: object) -> AsyncIterator[None]:
    """A host with a mock pool that talks to `server`."""
    config = {
        "orchestrator": str(server.address),
        "listen": "127.0.0.1:0",
        "devices": "cpu",
        "link": {"backoff": {"initial_ms": 20, "cap_ms": 100}},
        "pools": [{"pool_id": "mock", "engine": {"kind": "mock", "slots": slots}}],
        **tables,
    }
    manager = PoolManager(PoolConfig.model_validate(config), devices=CpuDevices())
    task = asyncio.create_task(manager.run())
    try:
        async with AsyncClient(str(server.address)) as client:
            # Retried until the pool has registered.
            await client.run(model_id="mock", prompt="ready").result()
        yield
    finally:
        manager.stop()
        await task


def slow_job(client: AsyncClient, tokens: int = 100) -> JobStream:
    """A job that gives a token every 20 ms."""
    script = {"token_count": tokens, "token_interval_ms": 20}
    sampling = Sampling(seed=1, engine_options={"mock": script})
    return client.run(model_id="mock", prompt="slow", sampling=sampling)


async def output(stream: JobStream, pieces: int) -> str:
    """Reads so many more pieces of output."""
    text = ""
    async for event in stream:
        if isinstance(event, Tokens):
            text += event.text
            pieces -= len(event.pieces)
            if pieces <= 0:
                break
    return text


async def rest(stream: JobStream) -> str:
    """Reads to the outcome."""
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])
