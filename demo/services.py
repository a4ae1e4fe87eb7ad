"""Both services as real processes in one directory: configuration, start, readiness, stop."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from llamaorch.pool.v1 import (
    pool_manager_service_pb2,
    pool_manager_service_pb2_grpc,
    snapshot_pb2,
)
from llamaorch_client import AsyncClient, LlamaOrchError, Pool

START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 40.0
LOG_LINE_BYTES = 1 << 20

REWRITTEN = "# Written anew at each start: change a copy, and start the service with that.\n"


class ServiceError(Exception):
    """A service did not start, or did not stop as it should."""


@dataclass(slots=True)
class Service:
    """One process whose log lines are kept in a file and searched for what it tells."""

    name: str
    process: asyncio.subprocess.Process
    log_path: Path
    events: dict[str, dict[str, object]] = field(default_factory=dict)
    _heard: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: asyncio.Task[None] | None = None
    _over: bool = False
    # What an earlier run left in the log.
    _log_before_bytes: int = 0

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], directory: Path, env: dict[str, str]
    ) -> "Service":
        """Starts `python -m arguments` in a directory; its log goes to NAME.log there."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo.child",
            str(os.getpid()),
            *arguments,
            cwd=directory,
            env=os.environ | env,
            stderr=asyncio.subprocess.PIPE,
            limit=LOG_LINE_BYTES,
            # Ctrl-C in a terminal reaches the whole group; the parent decides who stops when.
            start_new_session=True,
        )
        service = cls(name, process, directory / f"{name}.log")
        if service.log_path.exists():
            service._log_before_bytes = service.log_path.stat().st_size
        service._reader = asyncio.create_task(service._read())
        return service

    async def event(self, name: str) -> dict[str, object]:
        """Waits for a log event and returns its latest fields.

        Raises:
            ServiceError: with the end of the log, when it does not come.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S), self._heard:
                await self._heard.wait_for(lambda: name in self.events or self._over)
        except TimeoutError:
            raise ServiceError(f"{self.name} did not say {name!r}:\n{self.log_tail()}") from None
        if name not in self.events:
            raise ServiceError(f"{self.name} ended before {name!r}:\n{self.log_tail()}")
        return self.events[name]

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code; a process that stays is killed.

        Raises:
            ServiceError: when it had to be killed.
        """
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise ServiceError(f"{self.name} did not stop:\n{self.log_tail()}") from None
        if self._reader is not None:
            await self._reader
        return code

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of this run's log."""
        if not self.log_path.exists():
            return ""
        text = self.log_path.read_bytes()[self._log_before_bytes :].decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def _read(self) -> None:
        assert self.process.stderr is not None
        with self.log_path.open("ab") as log:
            async for line in self.process.stderr:
                log.write(line)
                log.flush()
                await self._hear(line)
        async with self._heard:
            self._over = True
            self._heard.notify_all()

    async def _hear(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "event" in entry:
                async with self._heard:
                    self.events[str(entry["event"])] = entry
                    self._heard.notify_all()


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """One pool. `tokens_per_s` and `first_token_ms` are first guesses, until jobs have shown."""

    pool_id: str = "local"
    slots: int = 2
    ctx_per_slot: int = 2048
    gpu_layers: int = 0
    threads: int = 1
    deterministic: bool = False
    tokens_per_s: float | None = None
    first_token_ms: int | None = None

    def toml(self, model: Path, model_id: str) -> str:
        """The pool's table in the pool manager's configuration."""
        hints = {"perf_tokens_per_s": self.tokens_per_s, "first_token_ms": self.first_token_ms}
        lines = [
            "[[pools]]",
            f'pool_id = "{self.pool_id}"',
            *(f"{key} = {value}" for key, value in hints.items() if value is not None),
            "[pools.engine]",
            'kind = "embedded"',
            f'model_path = "{model}"',
            f'model_id = "{model_id}"',
            f"slots = {self.slots}",
            f"ctx_per_slot = {self.ctx_per_slot}",
            f"gpu_layers = {self.gpu_layers}",
            f"threads = {self.threads}",
            f"deterministic = {str(self.deterministic).lower()}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What runs. `model` None: a model with random weights is generated, tiny or a slower one."""

    directory: Path
    model: Path | None = None
    model_id: str = "tiny"
    slow_model: bool = False
    pools: tuple[PoolOptions, ...] = (PoolOptions(),)
    listen: str = "127.0.0.1:0"
    devices: str = "cpu"
    orchestrator_toml: str = ""
    env: dict[str, str] = field(default_factory=dict)


class Stack:
    """orchestratord and one pool-managerd, ready to take jobs between `start` and `stop`."""

    def __init__(self, options: StackOptions) -> None:
        self._options = options
        self._orchestrator: Service | None = None
        self._pool_manager: Service | None = None
        self.address = options.listen

    @property
    def metrics_port(self) -> int | None:
        """Port of the status page and the metrics; None where there is none."""
        port = self.orchestrator.events["listening"]["metrics_port"]
        return int(port) if isinstance(port, int) else None

    @property
    def orchestrator(self) -> Service:
        """The orchestratord process."""
        assert self._orchestrator is not None, "start() comes first"
        return self._orchestrator

    @property
    def pool_manager(self) -> Service:
        """The pool-managerd process."""
        assert self._pool_manager is not None, "start() comes first"
        return self._pool_manager

    async def start(self) -> None:
        """Starts both and returns once all pools are READY. Raises `ServiceError`."""
        self._options.directory.mkdir(parents=True, exist_ok=True)
        await self.start_orchestrator()
        await self.start_pool_manager()

    async def start_orchestrator(self) -> None:
        """Starts orchestratord; a second time it gets the address that it had before."""
        directory = self._options.directory
        config = directory / "orchestratord.toml"
        config.write_text(
            f'{REWRITTEN}listen = "{self.address}"\n{self._options.orchestrator_toml}\n'
        )
        self._orchestrator = await Service.start(
            "orchestratord",
            ("orchestrator_core", "--config", str(config)),
            directory,
            self._options.env,
        )
        listening = await self._orchestrator.event("listening")
        self.address = str(listening["address"])

    async def start_pool_manager(self) -> None:
        """Starts pool-managerd and waits until all pools are READY, and known to orchestratord."""
        options = self._options
        self.orchestrator.events.pop("host_up", None)
        config = options.directory / "pool-managerd.toml"
        config.write_text(REWRITTEN + await asyncio.to_thread(self._pool_toml))
        self._pool_manager = await Service.start(
            "pool-managerd",
            ("pool_managerd", "--config", str(config)),
            options.directory,
            options.env,
        )
        listening = await self._pool_manager.event("listening")
        patience_s = START_TIMEOUT_S if options.model is None else LOAD_TIMEOUT_S
        await pools_ready(str(listening["address"]), len(options.pools), patience_s)
        # On a loaded machine engines can be faster than the registration, before which jobs are
        # refused, and than the report that the last of them is READY.
        await self.orchestrator.event("host_up")
        await pools_known(self.address, len(options.pools))

    async def stop(self) -> tuple[int, int]:
        """Drains both; returns the exit codes of orchestratord and pool-managerd."""
        try:
            first = await self._orchestrator.stop() if self._orchestrator else 0
        finally:
            second = await self._pool_manager.stop() if self._pool_manager else 0
        return first, second

    def _pool_toml(self) -> str:
        options = self._options
        model = options.model or self._generated_model()
        pools = "\n".join(pool.toml(model.resolve(), options.model_id) for pool in options.pools)
        return (
            f'orchestrator = "{self.address}"\n'
            'listen = "127.0.0.1:0"\n'
            'host_id = "this-machine"\n'
            f'devices = "{options.devices}"\n'
            f"{pools}\n"
        )

    def _generated_model(self) -> Path:
        # Only the machine that generates needs numpy.
        from pool_managerd.models.tiny_gguf import SLOW, TINY, write_tiny_model  # noqa: PLC0415

        model = self._options.directory / "tiny.gguf"
        write_tiny_model(model, SLOW if self._options.slow_model else TINY)
        return model


async def pools_known(address: str, count: int) -> None:
    """Follows orchestratord's pools until `count` of them are READY there too.

    Raises:
        ServiceError: when it takes too long, or orchestratord ends.
    """
    seen: tuple[Pool, ...] = ()
    try:
        async with asyncio.timeout(START_TIMEOUT_S), AsyncClient(address) as client:
            async for seen in client.watch_pools():
                if [pool.state for pool in seen].count("READY") == count:
                    return
    except (TimeoutError, LlamaOrchError):
        pass
    told = ", ".join(f"{pool.pool_id} {pool.state}" for pool in seen) or "none"
    raise ServiceError(f"orchestratord does not know that {count} pools are READY, but of: {told}")


# The pool has given up, or tries again with what cannot be loaded.
_HOPELESS = (
    snapshot_pb2.POOL_STATE_REASON_PRELOAD_FAILED,
    snapshot_pb2.POOL_STATE_REASON_RESTART_STORM,
)


async def pools_ready(address: str, count: int, patience_s: float) -> None:
    """Follows a pool manager's snapshots until `count` pools are READY.

    Raises:
        ServiceError: when a model cannot be loaded, or it takes too long.
    """
    seen: dict[str, str] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pool_manager_service_pb2_grpc.PoolManagerServiceStub(channel)
        try:
            async with asyncio.timeout(patience_s):
                request = pool_manager_service_pb2.WatchSnapshotsRequest()
                async for response in stub.WatchSnapshots(request):
                    for pool in response.pools:
                        state = snapshot_pb2.PoolState.Name(pool.state)
                        seen[pool.pool_id] = f"{state} {pool.state_detail}".strip()
                        if pool.state_reason in _HOPELESS:
                            raise ServiceError(f"pool {pool.pool_id}: {pool.state_detail}")
                    if list(seen.values()).count("POOL_STATE_READY") == count:
                        return
        except TimeoutError:
            pass
    raise ServiceError(f"not all pools became READY, last seen: {seen}")
