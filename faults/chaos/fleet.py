"""The processes of a campaign: one orchestratord, several pool-managerd, their engines."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from demo.services import Service
from pool_managerd.models.tiny_gguf import SLOW, TINY, write_tiny_model

FAILPOINT = "LLAMAORCH_FAILPOINT"
EXACT_MODEL, FREE_MODEL, MOCK_MODEL = "exact", "free", "mock"
MOCK_SLOTS, FREE_SLOTS = 4, 2
READY_TIMEOUT_S = 60.0
POLL_S = 0.02

# Retries are cheap here and a budget of three would be spent by design; jobs that ended are kept
# for as long as a client may be cut off; nothing may overtake, so that order can be judged.
ORCHESTRATOR_TOML = """
[store]
path = "journal.db"
prune_every_ms = 1000
[jobs]
retention_ms = 20000
attempts_max = 100
[placement]
decline_offers = false
"""
# Engines are killed on purpose: neither the storm breaker nor its long backoff shall end the run.
HOST_TOML = """
devices = "cpu"
[supervision]
storm_failures = 1000
backoff = { initial_ms = 100, cap_ms = 1000 }
health_interval_ms = 1000
[link]
backoff = { initial_ms = 100, cap_ms = 1000 }
"""


class HarnessError(Exception):
    """The campaign itself could not go on."""


@dataclass(slots=True)
class Process:
    """One service that can be started, killed and stopped any number of times."""

    name: str
    arguments: tuple[str, ...]
    directory: Path
    service: Service | None = None

    async def start(self, failpoint: str = "") -> None:
        """Starts it; returns at once."""
        env = {FAILPOINT: failpoint} if failpoint else {}
        self.service = await Service.start(self.name, self.arguments, self.directory, env)

    @property
    def pid(self) -> int:
        """Process id of the present life."""
        assert self.service is not None, "start() comes first"
        return self.service.process.pid

    @property
    def alive(self) -> bool:
        """True while the present life lasts."""
        return self.service is not None and self.service.process.returncode is None

    @property
    def stopped(self) -> bool:
        """True while it is stopped by a signal."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    async def died(self) -> int:
        """Waits for the end of the present life; returns the exit code."""
        assert self.service is not None, "start() comes first"
        return await self.service.process.wait()

    async def kill(self) -> None:
        """Ends the present life without a word."""
        if self.alive:
            self.send(signal.SIGKILL)
            await self.died()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def engines(self) -> list[psutil.Process]:
        """The engine processes below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                child
                for child in psutil.Process(self.pid).children()
                if child.status() != psutil.STATUS_ZOMBIE
            ]
        return []


class Fleet:
    """orchestratord and its hosts. `engines`: the embedded engine's pools beside the mock's.

    `slow` takes a model that can be caught in the middle of a prompt.
    """

    def __init__(
        self, directory: Path, hosts: int, *, engines: bool = True, slow: bool = False
    ) -> None:
        self._directory = directory
        self._engines = engines
        self._shape = SLOW if slow else TINY
        self.address = "127.0.0.1:0"
        config = str(directory / "orchestratord.toml")
        self.orchestrator = Process(
            "orchestratord", ("orchestrator_core", "--config", config), directory
        )
        self.hosts = [
            Process(
                f"host-{number}",
                ("pool_managerd", "--config", str(directory / f"host-{number}.toml")),
                directory,
            )
            for number in range(1, hosts + 1)
        ]
        self.stopped_engines: set[int] = set()

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self._directory / "journal.db"

    def log(self, process: Process) -> Path:
        """Log lines of all lives of a process."""
        return self._directory / f"{process.name}.log"

    async def start(self) -> None:
        """Starts all of it; the first start finds the address that every later one gets."""
        model = self._directory / "tiny.gguf"
        if self._engines:
            await asyncio.to_thread(write_tiny_model, model, self._shape)
        self._write_orchestrator()
        await self.orchestrator.start()
        assert self.orchestrator.service is not None, "it was started"
        listening = await self.orchestrator.service.event("listening")
        self.address = str(listening["address"])
        self._write_orchestrator()
        for host in self.hosts:
            toml = _host_toml(host.name, self.address, model if self._engines else None)
            (self._directory / f"{host.name}.toml").write_text(toml)
            await host.start()

    def _write_orchestrator(self) -> None:
        text = f'listen = "{self.address}"\n{ORCHESTRATOR_TOML}'
        (self._directory / "orchestratord.toml").write_text(text)

    async def revive(self) -> None:
        """Brings everything that is stopped or dead back to life, without failpoints."""
        self.continue_engines()
        for process in (self.orchestrator, *self.hosts):
            process.send(signal.SIGCONT)
            if not process.alive:
                await process.start()

    def continue_engines(self) -> None:
        """Wakes every engine that was stopped, also those whose pool manager died meanwhile."""
        for pid in self.stopped_engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped_engines.clear()

    async def close(self) -> list[int]:
        """Stops all gracefully; returns the exit codes."""
        await self.revive()
        services = [it.service for it in (self.orchestrator, *self.hosts) if it.service is not None]
        for service in services:
            # A signal ends a program that has only just begun, whatever it does with signals later.
            await service.event("listening")
        return [await service.stop() for service in services]

    def kill_all(self) -> None:
        """Leaves no process behind, whatever state the campaign is in."""
        self.continue_engines()
        for process in (self.orchestrator, *self.hosts):
            for engine in process.engines() if process.alive else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.kill()
            process.send(signal.SIGKILL)


def host_of_pool(pool_id: str) -> str:
    """The name of the process that runs a pool."""
    return pool_id.partition(":")[0]


def _host_toml(name: str, address: str, model: Path | None) -> str:
    head = f'orchestrator = "{address}"\nlisten = "127.0.0.1:0"\nhost_id = "{name}"\n{HOST_TOML}'
    return head + "\n".join(_pools(name, model))


def _pools(name: str, model: Path | None) -> Iterator[str]:
    yield (
        f'[[pools]]\npool_id = "{name}:mock"\n[pools.engine]\nkind = "mock"\n'
        f'model_id = "{MOCK_MODEL}"\nslots = {MOCK_SLOTS}'
    )
    if model is None:
        return
    embedded = f'[pools.engine]\nkind = "embedded"\nmodel_path = "{model}"\nctx_per_slot = 1024\n'
    yield (
        f'[[pools]]\npool_id = "{name}:exact"\n{embedded}'
        f'model_id = "{EXACT_MODEL}"\nslots = 1\ndeterministic = true'
    )
    yield (
        f'[[pools]]\npool_id = "{name}:free"\n{embedded}'
        f'model_id = "{FREE_MODEL}"\nslots = {FREE_SLOTS}'
    )
