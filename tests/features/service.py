"""The services that a journey is about: real ones, over real sockets, with mock engines."""

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaorch_client import AsyncClient, ClientOptions, RetryOptions
from orchestrator_core.auth.tokens import new_token, sha256_of
from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from orchestrator_core.store.port import Store
from pool_managerd.config.schema import Config as HostConfig
from pool_managerd.config.schema import PoolTable
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.mock import MockConfig, MockEngine, Sleep
from pool_managerd.engines.mock_script import MockScript
from pool_managerd.engines.port import Engine
from pool_managerd.factory import engine_factory
from pool_managerd.server import PoolManager

MODEL = "tiny"
# Nobody is slow here on purpose; a wait this long is a wait for something that will not come.
WAIT_S = 20.0
HOST_NAME = "gpu-host"
# What is refused is told at once.
ONCE = RetryOptions(attempts_max=1, retry_rejected=False)


class Pace:
    """Time of the mock engines: what takes its time waits here until it is let go."""

    def __init__(self) -> None:
        self._permits = 0
        self._free = False
        self._changed = asyncio.Condition()

    async def sleep(self, _seconds: float) -> None:
        """Waits for a permit instead of for time."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free or self._permits > 0)
            self._permits -= not self._free

    async def let_go(self, words: int | None = None) -> None:
        """Lets engines say so many words more, or all that they have to say from now on."""
        async with self._changed:
            self._free = self._free or words is None
            self._permits += words or 0
            self._changed.notify_all()

    def hold(self) -> None:
        """What begins now takes its time again."""
        self._free = False


@dataclass
class Host:
    """One pool manager in this process."""

    manager: PoolManager
    task: asyncio.Task[None]
    pool_ids: frozenset[str]


@dataclass
class Service:
    """One orchestratord and its hosts. `tables` is its configuration, as in the TOML file."""

    directory: Path
    tables: dict[str, Any] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    hosts: dict[str, Host] = field(default_factory=dict)
    engines: dict[str, list[Engine]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    store: Store | None = None
    otlp_endpoint: str = ""
    # What hosts are made of; a test may have others.
    devices: Callable[[], DeviceSource] = CpuDevices
    mock: Callable[[MockConfig, Sleep], Engine] = MockEngine
    retry: RetryOptions = ONCE
    _source: ConfigSource | None = None
    _server: OrchestratorServer | None = None
    _listen: str = "127.0.0.1:0"
    _clients: dict[str, AsyncClient] = field(default_factory=dict)

    @property
    def server(self) -> OrchestratorServer:
        """The running orchestratord."""
        assert self._server is not None, "start() comes first"
        return self._server

    @property
    def address(self) -> str:
        """Where clients reach it; the same after a restart."""
        return str(self.server.address)

    def know(self, name: str, role: str, token: str = "") -> None:
        """Makes a token for somebody; from then on the service asks everybody for one."""
        if HOST_NAME not in self.tokens and name != HOST_NAME:
            self.know(HOST_NAME, "pool")
        self.tokens[name] = token = token or new_token()
        known = self.tables.setdefault("auth", {}).setdefault("tokens", {})
        known[name] = {"role": role, "sha256": sha256_of(token)}

    def write_file(self, toml: str) -> None:
        """Writes the file that orchestratord then reads its configuration from."""
        file = self.directory / "orchestratord.toml"
        file.write_text(f'listen = "{self._listen}"\n{toml}\n', encoding="utf-8")
        self._source = ConfigSource(file, {})

    async def start(self) -> None:
        """Starts orchestratord on its journal; the first start finds its address."""
        base = {
            "listen": self._listen,
            "metrics_listen": "127.0.0.1:0",
            "store": {"path": str(self.directory / "journal.db")},
            "otlp_traces_endpoint": self.otlp_endpoint,
        }
        if self._source is not None:
            self._server = OrchestratorServer(self._source.read(), self.store, self._source)
        else:
            self._server = OrchestratorServer(Config.model_validate(base | self.tables), self.store)
        await self._server.start()
        self._listen = self.address

    async def restart(self) -> None:
        """Ends orchestratord as it is, with all that is under way, and starts it anew."""
        await self.server.stop()
        await self.start()
        await self._known({pool_id for host in self.hosts.values() for pool_id in host.pool_ids})

    async def add_host(self, host_id: str, *pools: dict[str, Any]) -> None:
        """Starts a pool manager and waits until orchestratord knows its pools."""
        host = await self.begin_host(host_id, *pools)
        await self._known(host.pool_ids)

    async def begin_host(self, host_id: str, *pools: dict[str, Any]) -> Host:
        """Starts a pool manager; each pool is the table of its engine with a `pool_id`."""
        tables = [
            {"pool_id": pool["pool_id"], "engine": {"kind": "mock", "model_id": MODEL} | engine}
            for pool in pools
            for engine in [{key: value for key, value in pool.items() if key != "pool_id"}]
        ]
        config = HostConfig.model_validate(
            {
                "orchestrator": self.address,
                "listen": "127.0.0.1:0",
                "host_id": host_id,
                "devices": "cpu",
                "link": {"backoff": {"initial_ms": 20, "cap_ms": 100}} | self._host_access(),
                "supervision": {"backoff": {"initial_ms": 10, "cap_ms": 50}},
                "pools": tables,
                "otlp_endpoint": self.otlp_endpoint,
            }
        )
        make = engine_factory(config)
        manager = PoolManager(config, engine_factory=self._factory(make), devices=self.devices())
        pool_ids = frozenset(table["pool_id"] for table in tables)
        host = Host(manager, asyncio.create_task(manager.run()), pool_ids)
        self.hosts[host_id] = host
        await manager.listening.wait()
        return host

    async def _known(self, pool_ids: Set[str]) -> None:
        """Asks until pools are not starting any more: a watch speaks a few times a second only."""
        client = await self.client(next((n for n in self.tokens if n != HOST_NAME), ""))
        async with asyncio.timeout(WAIT_S):
            known: set[str] = set()
            while not pool_ids <= known:
                pools = await client.pools()
                known = {
                    pool.pool_id
                    for pool in pools
                    if pool.connected and pool.state not in ("", "STARTING")
                }

    def _host_access(self) -> dict[str, Any]:
        if HOST_NAME not in self.tokens:
            return {}
        file = self.directory / "host.token"
        file.write_text(self.tokens[HOST_NAME], encoding="ascii")
        return {"token_file": str(file)}

    def _factory(
        self, make: Callable[[PoolTable, str], Engine]
    ) -> Callable[[PoolTable, str], Engine]:
        def factory(table: PoolTable, model_ref: str) -> Engine:
            engine = make(table, model_ref)
            if table.engine.kind == "mock":
                options = table.engine.model_dump(exclude={"kind", "script"})
                script = MockScript(**table.engine.script.model_dump())
                engine = self.mock(MockConfig(**options, script=script), self.pace.sleep)
            self.engines.setdefault(table.pool_id, []).append(engine)
            return engine

        return factory

    async def client(self, name: str = "") -> AsyncClient:
        """The client of somebody."""
        if name not in self._clients:
            options = ClientOptions(token=self.tokens.get(name), retry=self.retry)
            self._clients[name] = await AsyncClient(self.address, options=options).__aenter__()
        return self._clients[name]

    async def close(self) -> None:
        """Ends everything; what it was asked before is still known. Idempotent."""
        for client in self._clients.values():
            await client.close()
        for host in self.hosts.values():
            host.manager.stop()
            await host.task
        if self._server is not None:
            await self._server.stop()
