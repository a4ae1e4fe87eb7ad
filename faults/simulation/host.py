"""One life of a pool-managerd in a simulation: its parts, put together as its `server.py` does."""

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence

from grpc import aio

from faults.simulation.engine import Kind, SimulatedEngine
from faults.simulation.orchestrator import ADDRESS, EPOCH_MS
from faults.simulation.recorder import Recorder
from faults.simulation.virtual_time import Process, VirtualLoop
from pool_managerd.attempts.executor import Executor
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.store import AttemptStore, StoreLimits
from pool_managerd.link.dispatch import Link, LinkDeps
from pool_managerd.link.reporter import Reporter
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.pools.incarnation import PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.snapshots import HostState, SnapshotBuilder
from pool_managerd.telemetry import Telemetry

_CPU = (Device("cpu", DeviceKind.CPU, index=0),)


class VirtualHostClock:
    """The pool manager's clocks on virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._loop.now_ms

    def wall_ns(self) -> int:
        """See `Clock.wall_ns`."""
        return (EPOCH_MS + self._loop.now_ms) * 1_000_000


class OneProcessor:
    """Satisfies `DeviceSource`."""

    async def start(
        self, on_fault: Callable[[str, str], None], on_change: Callable[[], None]
    ) -> None:
        """See `DeviceSource.start`."""

    def devices(self) -> tuple[Device, ...]:
        """See `DeviceSource.devices`."""
        return _CPU

    def read_at_ms(self) -> int:
        """See `DeviceSource.read_at_ms`."""
        return 0

    async def stop(self) -> None:
        """See `DeviceSource.stop`."""


class SimulatedHost:
    """One life. `start` serves until its process is killed."""

    def __init__(
        self, config: Config, kinds: Sequence[Kind], recorder: Recorder, chance: random.Random
    ) -> None:
        self.process = Process(config.host_id)
        self.engines: list[SimulatedEngine] = []
        self.executor: Executor | None = None
        self._config = config
        self._kinds = {kind.pool: kind for kind in kinds}
        self._recorder = recorder
        self._chance = chance
        self._pools: dict[str, Pool] = {}
        self._healed = True

    async def start(self, loop: VirtualLoop) -> None:
        """Makes every part and dials. To be run as this process."""
        config, limits = self._config, self._config.limits
        clock, feed = VirtualHostClock(loop), ChangeFeed(limits.watchers_max)
        host = HostState(config.host_id, secrets.token_hex(8))
        deps = PoolDeps(
            clock=clock,
            feed=feed,
            telemetry=Telemetry(),
            spawn=_spawn,
            make_engine=self._make_engine,
            random_hex=lambda digits: secrets.token_hex((digits + 1) // 2)[:digits],
            jitter=self._chance.random,
            supervision=config.supervision,
        )
        store = AttemptStore(
            StoreLimits(
                limits.held_bytes_per_job, limits.held_bytes_total, limits.held_attempts_max
            )
        )
        executor = self.executor = Executor(store, deps)
        for table in config.pools:
            pool = self._pools[table.pool_id] = Pool(table, deps, executor)
            executor.attach(pool)
        snapshots = SnapshotBuilder(host, self._pools.values(), executor, OneProcessor(), clock)
        backoff = Backoff(config.link.backoff.initial_ms, config.link.backoff.cap_ms)
        link = Link(
            LinkDeps(
                config=config,
                connect=_connect,
                host=host,
                pools=self._pools,
                executor=executor,
                snapshots=snapshots,
                reporter=Reporter(host, snapshots, feed, backoff, self._chance.random),
                telemetry=deps.telemetry,
                jitter=self._chance.random,
            )
        )
        for pool in self._pools.values():
            pool.open()
        await link.run()

    def _make_engine(self, table: PoolTable, _model_ref: str) -> SimulatedEngine:
        engine = SimulatedEngine(
            self._kinds[table.pool_id], self.process, self._recorder, self._chance
        )
        # An incarnation has its id before it has its engine.
        engine.replica_id = self._pools[table.pool_id].incarnation.replica_id
        engine.healed = self._healed
        self.engines.append(engine)
        return engine

    def heal(self, *, healed: bool) -> None:
        """Whether its engines are without faults from now on; a host begins with good ones."""
        self._healed = healed
        for engine in self.engines:
            engine.healed = healed

    def killed(self) -> None:
        """The engines die with the host; told by nobody in particular, for the host is dead."""
        for engine in self.engines:
            engine.die()

    def measures(self) -> dict[str, int]:
        """What is held, in numbers that must come back to where they were."""
        assert self.executor is not None, "it has started"
        return {
            "held_attempts": sum(1 for _ in self.executor.store),
            "held_bytes": self.executor.store.held_bytes,
            "runs": len(self.executor._runs),
            "tasks": self.process.busy,
        }


async def _connect() -> aio.Channel:
    return aio.insecure_channel(ADDRESS)


def _spawn(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
