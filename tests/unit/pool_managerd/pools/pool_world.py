"""One pool in virtual time, and engines that do what a test says."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.config.schema import PoolTable
from pool_managerd.config.supervision import SupervisionTable
from pool_managerd.core.attempts import AttemptFailure, ErrorKind
from pool_managerd.core.replica import Reason
from pool_managerd.engines.port import (
    EngineInfo,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.pools.incarnation import PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.preflight.port import Prepared
from pool_managerd.telemetry import Telemetry

SUPERVISION = SupervisionTable.model_validate(
    {
        "backoff": {"initial_ms": 100, "cap_ms": 400},
        "storm_failures": 3,
        "storm_window_ms": 20_000,
        "preload_timeout_ms": 5_000,
        "stop_timeout_ms": 3_000,
        "circuit": {"errors": 2, "probes_max": 2, "pause": {"initial_ms": 100, "cap_ms": 400}},
    }
)
FAILURE = AttemptFailure(ErrorKind.ENGINE_ERROR, "the engine failed")
CLOSED_WITHIN_S = 60
KILL_S = 0.2
FETCH_S = {"far": 3_600.0, "near": 0.3}
"""How long models are fetched, by reference."""


class World:
    """What the pool's surroundings do, and what it has done to them.

    `load_ms` and `stop_ms` are how long that takes, `memory_ms` how long the pool waits for memory.
    An engine that starts finds `broken` or `hangs`; one that generates finds `sick`.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.feed = ChangeFeed(4)
        self.load_ms = self.stop_ms = self.memory_ms = 0
        self.broken = self.hangs = self.sick = False
        self.running: list[PretendedEngine] = []
        self.claims: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []

    def now_ms(self) -> int:
        """See `Clock`."""
        return self._loop.now_ms

    def wall_ns(self) -> int:
        """See `Clock`."""
        return self._loop.now_ms * 1_000_000

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """As the server does."""
        task = self._loop.create_task(work)
        self.tasks.append(task)
        return task

    def replica_gone(self, replica_id: str, sentence: str) -> None:
        """Its attempts let go of their slots."""
        assert self.pool.incarnation.replica_id == replica_id
        slots = self.pool.incarnation.slots
        if slots is not None:
            slots.release("attempt")

    def drain_expired(self, pool_id: str) -> None:
        """The attempts are stopped."""
        self.replica_gone(self.pool.incarnation.replica_id, pool_id)

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """See `Preflight`."""
        await asyncio.sleep(FETCH_S.get(model_ref, self.memory_ms / 1000))
        if model_ref == "absent":
            raise PreloadError(["no such model"])
        return Prepared(table, model_ref)

    async def memory(self, table: PoolTable) -> None:
        """See `Preflight`."""
        await asyncio.sleep(self.memory_ms / 1000)
        assert not self.claims, "what an ended engine claimed was given back"
        self.claims.add(table.pool_id)

    async def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """See `Preflight`."""
        assert self.claims == {table.pool_id}

    def gone(self, pool_id: str) -> None:
        """See `Preflight`."""
        self.claims.discard(pool_id)

    def doing(self, pool_id: str) -> str:
        """See `Preflight`."""
        return ""

    def engine(self, table: PoolTable, model_ref: str) -> "PretendedEngine":
        """See `EngineFactory`."""
        return PretendedEngine(self, model_ref)

    pool: Pool


@dataclass(eq=False)
class PretendedEngine:
    """An engine without anything behind it; runs from its start until its stop has taken effect."""

    world: World
    model_ref: str
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False

    async def start(self) -> EngineInfo:
        """Refuses, hangs, or serves after a while."""
        assert not self.world.running, "one engine at a time"
        self.world.running.append(self)
        if self.world.hangs:
            await asyncio.sleep(3_600)
        await asyncio.sleep(self.world.load_ms / 1000)
        if self.world.broken or self.model_ref == "bad":
            raise PreloadError(["broken"])
        return EngineInfo("pretended", "1", "m", "sha256:0", "s1", 2, 512)

    async def stop(self) -> None:
        """Ends it after a while; when its time is up it is killed, which takes a moment too."""
        try:
            await asyncio.sleep(KILL_S if self.killed else self.world.stop_ms / 1000)
        except asyncio.CancelledError:
            self.killed = True
            raise
        if self in self.world.running:
            self.world.running.remove(self)

    async def wait_exit(self) -> str:
        """Until the test says so."""
        await self.ended.wait()
        return "it ended"

    async def healthy(self) -> bool:
        """As well as it generates."""
        return not self.world.sick

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Fails while it is sick."""
        await asyncio.sleep(0.01)
        if self.world.sick:
            yield Failed(Failure.ENGINE_ERROR, "sick")
        else:
            yield Finished(Finish.EOS)

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """At once."""


def end_engine(world: World) -> None:
    """The process dies by itself."""
    for engine in world.running:
        engine.ended.set()


def fail_attempts(world: World) -> None:
    """Enough of them to open the circuit, of an engine that can have any."""
    for _ in range(2 if world.pool.incarnation.slots is not None else 0):
        world.pool.attempt_ended(world.pool.incarnation.replica_id, FAILURE)


def take_slot(world: World) -> None:
    """An attempt begins, if the pool lets it."""
    slots = world.pool.incarnation.slots
    if world.pool.accepts_work and slots is not None:
        slots.acquire("attempt")


def free_slot(world: World) -> None:
    """It ends, and the executor tells everybody."""
    if world.pool.incarnation.slots is not None:
        world.pool.incarnation.slots.release("attempt")
    world.feed.publish("p")


NO = Reason.NONE
ACTIONS: dict[str, Callable[[World], object]] = {
    "ends": end_engine,
    "attempts_fail": fail_attempts,
    "begin": take_slot,
    "end": free_slot,
    "drain": lambda world: world.pool.drain(Reason.OPERATOR, 500),
    "undrain": lambda world: world.pool.drain(NO),
    "hold": lambda world: world.pool.device_health("gpu", "unwell"),
    "unhold": lambda world: world.pool.device_health("gpu", ""),
    "reload": lambda world: world.pool.reload("good"),
    "reload_bad": lambda world: world.pool.reload("bad"),
    "reload_absent": lambda world: world.pool.reload("absent"),
    "reload_near": lambda world: world.pool.reload("near"),
    "revive": lambda world: world.pool.revive(),
    "open": lambda world: world.pool.open(),
    "broken": lambda world: setattr(world, "broken", True),
    "whole": lambda world: setattr(world, "broken", False),
    "hangs": lambda world: setattr(world, "hangs", True),
    "starts": lambda world: setattr(world, "hangs", False),
    "sick": lambda world: setattr(world, "sick", True),
    "well": lambda world: setattr(world, "sick", False),
    "slow_load": lambda world: setattr(world, "load_ms", 300),
    "slow_stop": lambda world: setattr(world, "stop_ms", 300),
    "endless_stop": lambda world: setattr(world, "stop_ms", 3_600_000),
    "slow_memory": lambda world: setattr(world, "memory_ms", 200),
    "cured": lambda world: None,
    "revived": lambda world: None,
}


def make_pool(world: World) -> Pool:
    """The real one, in this world."""
    deps = PoolDeps(
        clock=world,
        feed=world.feed,
        telemetry=Telemetry(),
        spawn=world.spawn,
        make_engine=world.engine,
        random_hex=lambda digits: "0" * (digits - 4) + f"{len(world.tasks):04x}"[-4:],
        jitter=lambda: 0.5,
        supervision=SUPERVISION,
        preflight=world,
    )
    table = PoolTable.model_validate({"pool_id": "p", "engine": {"kind": "mock"}})
    world.pool = Pool(table, deps, world)
    return world.pool


def in_world(story: Callable[[World], Coroutine[object, object, None]]) -> None:
    """Tells a story of a pool that serves, and closes it."""

    async def told(world: World) -> None:
        make_pool(world)
        world.pool.open()
        await asyncio.sleep(1)
        assert world.pool.accepts_work
        await story(world)
        world.pool.close()
        async with asyncio.timeout(CLOSED_WITHIN_S):
            await world.pool.closed.wait()
            await asyncio.gather(*world.tasks, return_exceptions=True)

    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(told(World(loop)))
    finally:
        loop.clean_up()
        asyncio.set_event_loop(None)
        loop.close()
