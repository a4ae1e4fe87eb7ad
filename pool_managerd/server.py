"""Composition root: makes every part, runs them in one task group, stops them in order."""

import asyncio
import contextlib
import random
import secrets
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from grpc import aio

from pool_managerd.attempts.executor import Executor
from pool_managerd.auth.credentials import LinkCredentials, Metadata
from pool_managerd.clock import Clock, SystemClock
from pool_managerd.config.live import LiveConfig
from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config, LinkTable
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.ledger import Ledger
from pool_managerd.core.mask import mask_problems
from pool_managerd.core.replica import Reason
from pool_managerd.core.store import AttemptStore, StoreLimits
from pool_managerd.devices.port import DeviceSource
from pool_managerd.factory import engine_factory as configured_factory
from pool_managerd.factory import make_devices
from pool_managerd.host_facts import HostFacts
from pool_managerd.link.dispatch import Link, LinkDeps
from pool_managerd.link.inputs import Inputs
from pool_managerd.link.reporter import Reporter
from pool_managerd.models.files import ModelFiles
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.pools.incarnation import EngineFactory, PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.preflight.host import HostPreflight, PreflightDeps
from pool_managerd.servicer import InspectionServer, PoolManagerServicer
from pool_managerd.snapshots import (
    HostState,
    SnapshotBuilder,
    by_device_id,
    masked,
)
from pool_managerd.telemetry import Telemetry, log, set_log_level
from pool_managerd.threads import in_thread

LEAVE_TIMEOUT_MS = 2_000
RPC_GRACE_MS = 500
TELEMETRY_TIMEOUT_MS = 5_000
DISK_TIMEOUT_MS = 10_000
"""Longest wait for the disk of engines' logs at the start."""


class PoolManager:
    """One pool manager. `run` serves until `drain` or `stop` is called, or until it is cancelled.

    The parts that touch the world can be replaced: engines, devices, clock. `read` reads the
    configuration again; without it a reload finds what there is.
    """

    def __init__(
        self,
        config: Config,
        *,
        engine_factory: EngineFactory | None = None,
        devices: DeviceSource | None = None,
        clock: Clock | None = None,
        read: Callable[[], Config] | None = None,
    ) -> None:
        self.listening = asyncio.Event()
        self.address = ""
        self.metrics_port: int | None = None
        self._config = config
        self._clock = clock or SystemClock()
        self._telemetry = Telemetry(
            config.otlp_endpoint, config.otlp_metrics_endpoint, config.metrics_listen
        )
        self._devices = devices or make_devices(config, self._telemetry.metrics)
        self._engine_factory = engine_factory or configured_factory(config)
        self._feed = ChangeFeed(config.limits.watchers_max)
        self._host = HostState(config.host_id, secrets.token_hex(8))
        self._ledger = Ledger()
        self._credentials = LinkCredentials()
        self._inputs = Inputs(config.limits.input_bytes_max, self._show)
        self._files = ModelFiles(config, self._clock, self._telemetry)
        self._pools: dict[str, Pool] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._live = LiveConfig(config, read or (lambda: config), self._apply)
        self._parts: _LiveParts | None = None
        self._hung_up = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def drain(self) -> None:
        """Takes no more work, lets running attempts finish within the grace, then stops."""
        self._stop.set()

    def stop(self) -> None:
        """Stops at once; running attempts end with ENGINE_DIED."""
        self._stop_now.set()
        self._stop.set()

    def revive(self) -> None:
        """Starts pools again that wait after a failure, or that have given up. ORCH-3053."""
        log.info("revive", human="Pools that had failed are started again.")
        for pool in self._pools.values():
            pool.revive()

    def hang_up(self) -> None:
        """Reads the configuration again, and starts pools that wait or have given up. HME-003."""
        self._hung_up.set()

    async def _reload(self) -> None:
        """Does so each time it was asked for; what is asked meanwhile counts once."""
        while True:
            await self._hung_up.wait()
            self._hung_up.clear()
            await self._live.reload(self._telemetry)
            self.revive()

    def _apply(self, before: Config, after: Config) -> None:
        """Puts in force what needs no restart."""
        self._config = after
        self._feed.watchers_max = after.limits.watchers_max
        if before.log_level != after.log_level:
            set_log_level(after.log_level)
        if self._parts is not None:
            self._parts.executor.store.limits = store_limits(after)
            self._parts.files.reconfigure(after)
            self._parts.server.use_tokens(after.auth.tokens)
            self._parts.facts.limits = after.limits

    async def run(self) -> None:
        """Serves until told to stop. Everything that was started is gone when it returns.

        Raises:
            DevicesUnavailableError: when the configured devices cannot be read.
            ConfigError: when a pool's device mask names a device that is not there, or logs of
                engines cannot be written where they are to be.
            OSError: when the address of the inspection, or of the metrics, cannot be bound.
        """
        await _check_log_directory(self._config.engine_logs.directory)
        await self._devices.start(self._device_fault, self._devices_changed)
        try:
            self._check_masks()
            executor = self._make_pools()
            snapshots = SnapshotBuilder(
                self._host, self._pools.values(), executor, self._devices, self._clock, self._ledger
            )
            watch_interval_ms = self._config.report_interval_ms * 10
            servicer = PoolManagerServicer(snapshots, self._feed, watch_interval_ms)
            server = InspectionServer(self._config, servicer, self._clock)
            facts = HostFacts(
                self._telemetry.metrics,
                self._pools.values(),
                executor,
                self._devices,
                self._config.limits,
            )
            self._parts = _LiveParts(executor, self._files, server, facts)
            self.metrics_port = port = await self._telemetry.start(facts.sample)
            if port is not None:
                log.info("metrics_listening", metrics_port=port, human=f"Metrics at port {port}.")
            await server.start()
            self.address = server.address
            self.listening.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    await self._serve(server, executor, snapshots, facts)
            finally:
                await server.stop(RPC_GRACE_MS)
        finally:
            await self._devices.stop()
            await self._telemetry.stop(TELEMETRY_TIMEOUT_MS)
        log.info("stopped", human="The pool manager has stopped.")

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        assert self._tasks is not None, "the server runs"
        return self._tasks.create_task(work)

    async def _serve(
        self,
        server: InspectionServer,
        executor: Executor,
        snapshots: SnapshotBuilder,
        facts: HostFacts,
    ) -> None:
        link = self._make_link(executor, snapshots)
        facts.show(link, self._host)
        link_task = self._spawn(link.run())
        reload_task = self._spawn(self._reload())
        for pool in self._pools.values():
            pool.open()
        try:
            await self._stop.wait()
            await self._leave(server, executor)
        finally:
            await self._close_pools()
            if not self._stop_now.is_set():
                await link.leave(LEAVE_TIMEOUT_MS)
            reload_task.cancel()
            link_task.cancel()
            await asyncio.wait((link_task, reload_task), timeout=RPC_GRACE_MS / 1000)

    async def _connect(self) -> aio.Channel:
        return await self._credentials.channel(self._config, channel_options(self._config.link))

    async def _show(self) -> Metadata:
        return await self._credentials.metadata(self._config)

    def _make_pools(self) -> Executor:
        store = AttemptStore(store_limits(self._config))
        deps = PoolDeps(
            clock=self._clock,
            feed=self._feed,
            telemetry=self._telemetry,
            spawn=self._spawn,
            make_engine=self._engine_factory,
            random_hex=lambda digits: secrets.token_hex((digits + 1) // 2)[:digits],
            jitter=_jitter,
            supervision=self._config.supervision,
            preflight=self._make_preflight(),
        )
        executor = Executor(store, deps)
        executor.fetch_input = self._inputs.fetch
        for table in self._config.pools:
            pool = Pool(by_device_id(table, self._devices.devices()), deps, executor)
            self._pools[pool.pool_id] = pool
            executor.attach(pool)
        for device in self._devices.devices():
            # What became unwell before there were pools was told to nobody.
            if device.health_detail:
                self._device_fault(device.device_id, device.health_detail)
        return executor

    def _make_preflight(self) -> HostPreflight:
        return HostPreflight(
            PreflightDeps(
                clock=self._clock,
                files=self._files,
                ledger=self._ledger,
                devices=lambda table: masked(table, self._devices.devices()),
                read_at_ms=self._devices.read_at_ms,
                wait_ms=self._config.supervision.freed_memory_wait_ms,
            )
        )

    def _make_link(self, executor: Executor, snapshots: SnapshotBuilder) -> Link:
        table = self._config.link.backoff
        backoff = Backoff(table.initial_ms, table.cap_ms)
        return Link(
            LinkDeps(
                config=self._config,
                connect=self._connect,
                metadata=self._show,
                inputs=self._inputs,
                host=self._host,
                pools=self._pools,
                executor=executor,
                snapshots=snapshots,
                reporter=Reporter(self._host, snapshots, self._feed, backoff, _jitter),
                telemetry=self._telemetry,
                jitter=_jitter,
            )
        )

    async def _leave(self, server: InspectionServer, executor: Executor) -> None:
        grace_ms = self._config.shutdown_grace_ms
        log.info("draining", grace_ms=grace_ms, human="Running attempts finish, then it stops.")
        await server.leave()
        for pool in self._pools.values():
            pool.drain(Reason.SHUTDOWN)
        idle = asyncio.create_task(self._until_idle(executor))
        now = asyncio.create_task(self._stop_now.wait())
        try:
            await asyncio.wait(
                (idle, now), timeout=grace_ms / 1000, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (idle, now):
                task.cancel()

    async def _until_idle(self, executor: Executor) -> None:
        with self._feed.subscribe() as changes:
            while not executor.idle:
                await changes.next()

    async def _close_pools(self) -> None:
        for pool in self._pools.values():
            pool.close()
        limit_ms = 2 * self._config.supervision.stop_timeout_ms
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_ms / 1000):
                for pool in self._pools.values():
                    await pool.closed.wait()

    def _device_fault(self, device_id: str, sentence: str) -> None:
        for pool in self._pools.values():
            mine = masked(pool.table, self._devices.devices())
            if any(device.device_id == device_id for device in mine):
                pool.device_health(device_id, sentence)

    def _devices_changed(self) -> None:
        # What was read goes out at once, not up to a report interval later.
        for pool_id in self._pools:
            self._feed.publish(pool_id)

    def _check_masks(self) -> None:
        devices = self._devices.devices()
        problems = [
            f"pools.{table.pool_id}.devices: {problem}"
            for table in self._config.pools
            for problem in mask_problems(table.devices, devices)
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class _LiveParts:
    """What takes other settings while it runs."""

    executor: Executor
    files: ModelFiles
    server: InspectionServer
    facts: HostFacts


def store_limits(config: Config) -> StoreLimits:
    """The bounds of the store of attempts."""
    limits = config.limits
    return StoreLimits(limits.held_bytes_per_job, limits.held_bytes_total, limits.held_attempts_max)


async def _check_log_directory(directory: str) -> None:
    def write() -> None:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass

    if not directory:
        return
    try:
        async with asyncio.timeout(DISK_TIMEOUT_MS / 1000):
            await in_thread(write)
    except OSError as error:
        silent = f"it does not answer within {DISK_TIMEOUT_MS} ms"
        why = silent if isinstance(error, TimeoutError) else error.strerror
        problem = f"engine_logs.directory: {directory} cannot be written: {why}"
        raise ConfigError([problem]) from error


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads retries, guards nothing


def channel_options(link: LinkTable) -> list[tuple[str, int]]:
    """Options of the channel to the orchestrator.

    Pings find a peer that vanished without a word.
    """
    backoff = link.backoff
    return [
        ("grpc.max_receive_message_length", 4 << 20),
        ("grpc.max_send_message_length", 4 << 20),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", max(100, backoff.initial_ms)),
        ("grpc.min_reconnect_backoff_ms", max(100, backoff.initial_ms)),
        ("grpc.max_reconnect_backoff_ms", max(100, backoff.cap_ms)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
