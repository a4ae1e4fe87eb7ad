"""The shell around one pool: runs its engine as `core.replica` says.

ORCH-3001, ORCH-3002, ORCH-3038.

Every event is applied on the event loop as it happens, so state and snapshot never disagree.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from pool_managerd import failpoints
from pool_managerd.clock import Clock
from pool_managerd.config import PoolTable, SupervisionTable
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.replica import (
    Effect,
    Event,
    Kind,
    Limits,
    Phase,
    PoolState,
    Reason,
    Supervisor,
)
from pool_managerd.core.slots import Slots
from pool_managerd.engines.port import Engine, EngineInfo, PreloadError
from pool_managerd.feed import ChangeFeed
from pool_managerd.telemetry import SPAN_DRAIN, SPAN_START, SPAN_STOP, Telemetry, log

WARM_SESSIONS_MAX = 64

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]
EngineFactory = Callable[[PoolTable, str], Engine]


class AttemptKeeper(Protocol):
    """What a pool asks of the executor."""

    def replica_gone(self, replica_id: str, sentence: str) -> None:
        """The engine of `replica_id` is over: its attempts end with ENGINE_DIED."""
        ...

    def drain_expired(self, pool_id: str) -> None:
        """A drain's time is up: the pool's attempts are stopped."""
        ...


@dataclass(frozen=True, slots=True)
class PoolDeps:
    """What every pool of a host shares.

    `random_hex(n)` gives n hex digits, `jitter()` a number in [0, 1).
    """

    clock: Clock
    feed: ChangeFeed
    telemetry: Telemetry
    spawn: Spawn
    make_engine: EngineFactory
    random_hex: Callable[[int], str]
    jitter: Callable[[], float]
    supervision: SupervisionTable


@dataclass(slots=True, eq=False)
class Incarnation:
    """One life of an engine. `gone` is set once the engine is stopped."""

    replica_id: str
    engine: Engine | None = None
    slots: Slots | None = None
    failing: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    # Sessions served most recently, at most one for each slot: their keys and values may be cached.
    warm: OrderedDict[str, None] = field(default_factory=OrderedDict)


class Pool:
    """One pool: a stable id and one engine incarnation at a time."""

    def __init__(self, table: PoolTable, deps: PoolDeps, keeper: AttemptKeeper) -> None:
        self.table = table
        self._deps = deps
        self._keeper = keeper
        limits = deps.supervision
        backoff = Backoff(limits.backoff.initial_ms, limits.backoff.cap_ms)
        self._supervisor = Supervisor(
            Limits(backoff, limits.storm_failures, limits.storm_window_ms, limits.stable_ms)
        )
        self.info: EngineInfo | None = None
        self.incarnation = self._new_incarnation()
        self.closed = asyncio.Event()
        # Model references: the one that serves, and the one to start next. Empty: the configured
        # model.
        self._loaded_ref = ""
        self._wanted_ref = ""
        self._reload_detail = ""
        self._timer: asyncio.TimerHandle | None = None
        self._device_faults: dict[str, str] = {}
        self._opened = False
        self._drain_timer: asyncio.TimerHandle | None = None

    @property
    def pool_id(self) -> str:
        """Stable id."""
        return self.table.pool_id

    @property
    def accepts_work(self) -> bool:
        """True when a new attempt may start."""
        return self._supervisor.accepts_work

    @property
    def idle(self) -> bool:
        """True when no slot is held."""
        slots = self.incarnation.slots
        return slots is None or slots.free == slots.total

    def state(self) -> tuple[PoolState, Reason, str]:
        """State, reason and a sentence for people."""
        state, reason, detail = self._supervisor.state()
        return state, reason, detail or self._reload_detail

    def open(self) -> None:
        """Starts the first engine, unless a device is unwell already."""
        self._opened = True
        if self._device_faults:
            self._fail_for_devices()
        else:
            self._perform((Effect.START_ENGINE,))

    def close(self) -> None:
        """Stops the engine for good; `closed` is set once it is gone. Idempotent."""
        self._cancel_drain_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._post(Event(Kind.CLOSE))

    def fail(self, replica_id: str, reason: Reason, detail: str) -> None:
        """Restarts the engine of `replica_id`; without effect when that incarnation is over."""
        incarnation = self.incarnation
        if incarnation.replica_id != replica_id or incarnation.failing:
            return
        incarnation.failing = True
        log.warning(
            "replica_failed",
            pool_id=self.pool_id,
            replica_id=replica_id,
            reason=reason.value,
            detail=detail,
            human=f"The engine of pool {self.pool_id} is stopped: {detail}",
        )
        self._post(Event(Kind.FAILED, reason, detail))

    def device_health(self, device_id: str, sentence: str) -> None:
        """Notes that a device of the pool is unwell, as `sentence` says, or well again with "".

        The engine is stopped, and started again, with backoff, once all devices are well.
        ORCH-3038.
        """
        self._device_faults.pop(device_id, None)
        if sentence:
            self._device_faults[device_id] = sentence
        self._supervisor.hold("; ".join(self._device_faults.values()))
        if not self._opened:
            return
        if sentence and self._supervisor.phase in (Phase.STARTING, Phase.SERVING):
            self._fail_for_devices()
        elif self._supervisor.overdue(self._deps.clock.now_ms()):
            self._post(Event(Kind.RETRY_DUE))
        self._changed()

    def _fail_for_devices(self) -> None:
        sentence = next(iter(self._device_faults.values()))
        self.fail(self.incarnation.replica_id, Reason.DEVICE_ERROR, sentence)

    def drain(self, reason: Reason, timeout_ms: int | None = None) -> None:
        """Takes no more work, or takes it again with `Reason.NONE`. OC-CTRL-2002.

        After `timeout_ms` the attempts that still run are stopped.
        """
        self._cancel_drain_timer()
        self._supervisor.set_drain(reason)
        if reason is not Reason.NONE and timeout_ms is not None:
            loop = asyncio.get_running_loop()
            self._drain_timer = loop.call_later(
                timeout_ms / 1000, self._keeper.drain_expired, self.pool_id
            )
        self._deps.telemetry.event(SPAN_DRAIN, {"pool_id": self.pool_id, "reason": reason.value})
        log.info("pool_drain", pool_id=self.pool_id, reason=reason.value)
        self._changed()

    def reload(self, model_ref: str) -> None:
        """Loads the model anew, or `model_ref`, once the pool is idle. OC-CTRL-2003.

        When the new model cannot be loaded the former one is loaded again.
        """
        if self._supervisor.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        self._deps.spawn(self._reload(model_ref))

    def note_session(self, session_id: str) -> None:
        """Notes that a slot served `session_id` last."""
        if not session_id or self.info is None or self.info.deterministic:
            return
        warm = self.incarnation.warm
        warm[session_id] = None
        warm.move_to_end(session_id)
        while len(warm) > min(self.info.slots_total, WARM_SESSIONS_MAX):
            warm.popitem(last=False)

    def _new_incarnation(self) -> Incarnation:
        return Incarnation(f"{self.pool_id}-{self._deps.random_hex(8)}")

    def _changed(self) -> None:
        self._deps.feed.publish(self.pool_id)

    def _cancel_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def _post(self, event: Event) -> None:
        before = self._supervisor.state()
        effects = self._supervisor.step(event, self._deps.clock.now_ms())
        after = self._supervisor.state()
        if after != before:
            state, reason, detail = after
            log.info(
                "pool_state",
                pool_id=self.pool_id,
                replica_id=self.incarnation.replica_id,
                state=state.value,
                reason=reason.value,
                detail=detail,
            )
        self._perform(effects)
        if self._supervisor.phase is Phase.CLOSED:
            self.closed.set()
        self._changed()

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Effect.START_ENGINE:
                    if self.incarnation.gone.is_set():
                        self.incarnation = self._new_incarnation()
                    incarnation = self.incarnation
                    incarnation.tasks.append(self._deps.spawn(self._start(incarnation)))
                case Effect.STOP_ENGINE:
                    self.incarnation.failing = True
                    self._deps.spawn(self._stop(self.incarnation))
                case Effect.ARM_RETRY:
                    self._arm_retry()

    def _arm_retry(self) -> None:
        retry_at_ms = self._supervisor.retry_at_ms
        assert retry_at_ms is not None, "ARM_RETRY comes with an instant"
        delay_ms = max(0, retry_at_ms - self._deps.clock.now_ms())
        self._timer = asyncio.get_running_loop().call_later(
            delay_ms / 1000, self._post, Event(Kind.RETRY_DUE)
        )

    async def _start(self, incarnation: Incarnation) -> None:
        replica_id = incarnation.replica_id
        attributes = {"pool_id": self.pool_id, "replica_id": replica_id}
        timeout_ms = self._deps.supervision.preload_timeout_ms
        with self._deps.telemetry.span(SPAN_START, attributes) as span:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    engine = self._deps.make_engine(self.table, self._wanted_ref)
                    incarnation.engine = engine
                    info = await engine.start()
                    incarnation.slots = Slots(info.slots_total)
                    failpoints.reach("engine.ready")
            except PreloadError as error:
                problem = str(error)
            except TimeoutError:
                problem = f"the engine was not ready after {timeout_ms} ms"
            except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
                problem = f"the engine could not be started: {type(error).__name__}: {error}"
            else:
                self._deps.telemetry.annotate(span, {"outcome": "ready"})
                self._serving(incarnation, info)
                return
            self._deps.telemetry.annotate(span, {"outcome": "failed"})
        if self._wanted_ref != self._loaded_ref:
            self._reload_detail = f"the model {self._wanted_ref} could not be loaded: {problem}"
            self._wanted_ref = self._loaded_ref
        self.fail(replica_id, Reason.PRELOAD_FAILED, problem)

    def _serving(self, incarnation: Incarnation, info: EngineInfo) -> None:
        self.info = info
        self._loaded_ref = self._wanted_ref
        assert incarnation.engine is not None, "a started incarnation has an engine"
        watchers = (
            self._watch_exit(incarnation, incarnation.engine),
            self._watch_health(incarnation, incarnation.engine),
        )
        incarnation.tasks.extend(self._deps.spawn(watcher) for watcher in watchers)
        self._post(Event(Kind.PRELOADED))

    async def _watch_exit(self, incarnation: Incarnation, engine: Engine) -> None:
        try:
            sentence = await engine.wait_exit()
        except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
            sentence = f"the engine is no longer watched: {type(error).__name__}"
        self.fail(incarnation.replica_id, Reason.ENGINE_EXITED, sentence)

    async def _watch_health(self, incarnation: Incarnation, engine: Engine) -> None:
        limits = self._deps.supervision
        failures = 0
        while failures < limits.health_failures:
            await asyncio.sleep(limits.health_interval_ms / 1000)
            failures = 0 if await self._healthy(engine) else failures + 1
        detail = f"{failures} health checks in a row failed"
        self.fail(incarnation.replica_id, Reason.ENGINE_UNHEALTHY, detail)

    async def _healthy(self, engine: Engine) -> bool:
        try:
            async with asyncio.timeout(self._deps.supervision.health_interval_ms / 1000 + 1):
                return await engine.healthy()
        except TimeoutError:
            return False

    async def _stop(self, incarnation: Incarnation) -> None:
        for task in incarnation.tasks:
            task.cancel()
        _, reason, detail = self._supervisor.state()
        self._keeper.replica_gone(incarnation.replica_id, detail or "the engine was stopped")
        attributes = {
            "pool_id": self.pool_id,
            "replica_id": incarnation.replica_id,
            "reason": reason.value,
        }
        if incarnation.tasks:
            await asyncio.wait(
                incarnation.tasks, timeout=self._deps.supervision.stop_timeout_ms / 1000
            )
        with self._deps.telemetry.span(SPAN_STOP, attributes):
            await self._stop_engine(incarnation)
        incarnation.gone.set()
        self._post(Event(Kind.ENGINE_STOPPED, jitter=self._deps.jitter()))

    async def _stop_engine(self, incarnation: Incarnation) -> None:
        if incarnation.engine is None:
            return
        try:
            async with asyncio.timeout(self._deps.supervision.stop_timeout_ms / 1000):
                await incarnation.engine.stop()
        except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
            log.error(
                "engine_stop_failed",
                pool_id=self.pool_id,
                replica_id=incarnation.replica_id,
                error=f"{type(error).__name__}: {error}",
            )

    async def _reload(self, model_ref: str) -> None:
        log.info("pool_reload", pool_id=self.pool_id, model_ref=model_ref)
        before = self._supervisor.state()[1] if not self.accepts_work else Reason.NONE
        keep = before if before in (Reason.OPERATOR, Reason.SHUTDOWN) else Reason.NONE
        self._supervisor.set_drain(Reason.OPERATOR)
        self._changed()
        with self._deps.feed.subscribe() as changes:
            busy = (Phase.STARTING, Phase.STOPPING)
            while not self.idle or self._supervisor.phase in busy:
                await changes.next()
        self._wanted_ref, self._reload_detail = model_ref or self._loaded_ref, ""
        self._supervisor.set_drain(keep)
        if self._timer is not None:
            self._timer.cancel()
        self._post(Event(Kind.RELOAD, detail="an operator reloads the model"))
