"""One life of a pool-managerd in a simulation: its parts, put together as its `server.py` does."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence

from grpc import aio

from faults import history as h
from faults.simulation.engine import Kind, OnEnd, SimulatedEngine
from faults.simulation.orchestrator import ADDRESS, EPOCH_MS
from faults.simulation.recorder import Recorder
from faults.simulation.virtual_time import Process, VirtualLoop
from pool_managerd.attempts.executor import Executor
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.core.attempts import AttemptKey, EndReason
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.replica import Reason
from pool_managerd.core.store import AttemptStore, StoreLimits
from pool_managerd.link.dispatch import Link, LinkDeps
from pool_managerd.link.reporter import Reporter
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.pools.incarnation import PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.server import LEAVE_TIMEOUT_MS
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


class WatchedStore(AttemptStore):
    """Tells of each attempt that it has in whole."""

    def __init__(self, limits: StoreLimits, on_whole: Callable[[AttemptKey], None]) -> None:
        super().__init__(limits)
        self._on_whole = on_whole

    def note_ended(self, key: AttemptKey) -> None:
        """See `AttemptStore.note_ended`."""
        super().note_ended(key)
        log = self.get(key)
        end = None if log is None or log.terminal is None else log.terminal.outcome
        if isinstance(end, EndReason) and end is not EndReason.CANCELLED:
            self._on_whole(key)


class SimulatedHost:
    """One life. `start` serves until its process is killed."""

    def __init__(
        self,
        config: Config,
        kinds: Sequence[Kind],
        recorder: Recorder,
        chance: random.Random,
        on_end: OnEnd,
    ) -> None:
        self.process = Process(config.host_id)
        self.engines: list[SimulatedEngine] = []
        self.executor: Executor | None = None
        self._config = config
        self._kinds = {kind.pool: kind for kind in kinds}
        self._recorder = recorder
        self._chance = chance
        self._on_end = on_end
        self._pools: dict[str, Pool] = {}
        self._healed = True
        self._link: Link | None = None
        self._feed = ChangeFeed(config.limits.watchers_max)

    async def start(self, loop: VirtualLoop) -> None:
        """Makes every part and dials. To be run as this process."""
        config, limits = self._config, self._config.limits
        clock, feed = VirtualHostClock(loop), self._feed
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
        store = WatchedStore(
            StoreLimits(
                limits.held_bytes_per_job, limits.held_bytes_total, limits.held_attempts_max
            ),
            self._has_end,
        )
        executor = self.executor = Executor(store, deps)
        for table in config.pools:
            pool = self._pools[table.pool_id] = Pool(table, deps, executor)
            executor.attach(pool)
        snapshots = SnapshotBuilder(host, self._pools.values(), executor, OneProcessor(), clock)
        backoff = Backoff(config.link.backoff.initial_ms, config.link.backoff.cap_ms)
        link = self._link = Link(
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

    def _has_end(self, key: AttemptKey) -> None:
        host, process = self._config.host_id, self.process
        self._recorder.record(process, h.EndHeld, host=host, job_id=key.job_id, attempt=key.attempt)

    def _make_engine(self, table: PoolTable, _model_ref: str) -> SimulatedEngine:
        engine = SimulatedEngine(
            self._kinds[table.pool_id], self.process, self._recorder, self._chance, self._on_end
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

    async def leave(self, grace_ms: int) -> None:
        """Stops in order, as `server.py` does: what runs ends within the grace, and all is told."""
        assert self.executor is not None, "it has started"
        assert self._link is not None, "it has started"
        for pool in self._pools.values():
            pool.drain(Reason.SHUTDOWN)
        with contextlib.suppress(TimeoutError), self._feed.subscribe() as changes:
            async with asyncio.timeout(grace_ms / 1000):
                while not self.executor.idle:
                    await changes.next()
        for pool in self._pools.values():
            pool.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._config.supervision.stop_timeout_ms / 1000):
                for pool in self._pools.values():
                    await pool.closed.wait()
        await self._link.leave(LEAVE_TIMEOUT_MS)

    def sicken(self, sentence: str) -> None:
        """Its devices are unwell, as the sentence says, or well again."""
        for pool in self._pools.values():
            pool.device_health(_CPU[0].device_id, sentence)

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
