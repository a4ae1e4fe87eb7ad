"""The shell around one pool: runs its engine as `core.replica` says.

ORCH-3001, ORCH-3002, ORCH-3038, ORCH-3204.

Every event is applied on the event loop as it happens, so state and snapshot never disagree.
"""

import asyncio
import contextlib

from pool_managerd.config.schema import PoolTable
from pool_managerd.core.attempts import AttemptFailure, EndReason
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.circuit import Circuit
from pool_managerd.core.model_ref import shown_ref
from pool_managerd.core.reload import ModelChoice, kept_former
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
from pool_managerd.engines.port import Engine, EngineInfo
from pool_managerd.pools import told
from pool_managerd.pools.incarnation import AttemptKeeper, Incarnation, PoolDeps
from pool_managerd.pools.probing import Tester
from pool_managerd.pools.starting import NotStarted, missing, started
from pool_managerd.pools.watching import (
    Reminder,
    circuit_limits,
    engines_fault,
    exit_of,
    until_unhealthy,
)
from pool_managerd.telemetry import SPAN_DRAIN, SPAN_RELOAD, SPAN_STOP

DETAIL_CHARS_MAX = 700
"""Of a failure's sentence, so that what follows it in a snapshot is not cut off."""


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
        self._circuit_limits = circuit_limits(limits.circuit)
        tests = limits.self_test.enabled and table.engine.kind != "mock"
        self._tester = Tester(limits, tests if table.self_test is None else table.self_test)
        self.info: EngineInfo | None = None
        self.incarnation = self._new_incarnation()
        self.closed = asyncio.Event()
        self.model = ModelChoice()
        # Draining is what an operator or a shutdown asked for, and what a waiting reload needs.
        self._drain_asked = Reason.NONE
        self._timer: asyncio.TimerHandle | None = None
        self._device_faults: dict[str, str] = {}
        self._given_up_for = Reason.OPERATOR
        self._opened = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._reload_timer: asyncio.TimerHandle | None = None
        self._reload_timeout_ms: int | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reminder = Reminder(
            lambda: told.halted(self.pool_id, self._supervisor.storm), limits.storm_remind_ms
        )

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
        if state in (PoolState.STARTING, PoolState.READY):
            detail = detail or self._deps.preflight.doing(self.pool_id)
        return state, reason, detail or self.model.problem

    def open(self) -> None:
        """Starts the first engine, unless a device is unwell already."""
        self._opened = True
        if self._device_faults:
            self._fail_for_devices()
        else:
            self._perform((Effect.START_ENGINE,))

    def close(self) -> None:
        """Stops the engine for good; `closed` is set once it is gone. Idempotent."""
        for timer in (self._drain_timer, self._reload_timer, self._timer):
            _cancel(timer)
        if self._reloading is not None:
            # It may fetch a model for hours.
            self._reloading.cancel()
        self._post(Event(Kind.CLOSE))

    def fail(self, replica_id: str, reason: Reason, detail: str, *, passing: bool = False) -> None:
        """Restarts the engine of `replica_id`; without effect when that incarnation is over."""
        incarnation = self.incarnation
        if incarnation.replica_id != replica_id or incarnation.failing:
            return
        incarnation.failing = True
        self._given_up_for = reason
        detail = detail[:DETAIL_CHARS_MAX]
        told.failed(self.pool_id, replica_id, reason, detail, served=self._serves)
        self._post(Event(Kind.FAILED, reason, detail, passing=passing))

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
        _cancel(self._drain_timer)
        self._drain_asked = reason
        self._set_drain()
        if reason is not Reason.NONE and timeout_ms is not None:
            self._drain_timer = self._stop_attempts_after(timeout_ms)
        self._deps.telemetry.event(SPAN_DRAIN, {"pool_id": self.pool_id, "reason": reason.value})
        told.drained(self.pool_id, reason)
        self._changed()

    def reload(self, model_ref: str, reload_id: str = "", timeout_ms: int | None = None) -> None:
        """Loads the model anew, or `model_ref`, once that is here and the pool idle. OC-CTRL-2003.

        The pool serves on while the model is fetched, and stays as it is when it cannot be had.
        When it cannot be loaded the former one is loaded again. Of several reloads that wait the
        last one counts. Attempts that run then and still `timeout_ms` later are stopped.
        """
        if self._supervisor.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        told.reloads(self.pool_id, shown_ref(model_ref))
        first = self.model.ask(model_ref, reload_id)
        if timeout_ms is not None:
            self._reload_timeout_ms = timeout_ms
            if self.model.found:
                self._limit_attempts()
        if first:
            self._reloading = self._deps.spawn(self._reload())
        self._set_drain()
        self._changed()

    def revive(self) -> None:
        """Starts a pool again that waits, or that has given up. Others stay as they are.

        One for which a reload waits is started by that.
        """
        if self.model.asked is None and self._supervisor.phase in (Phase.WAITING, Phase.HALTED):
            self.reload(self.model.wanted)

    def attempt_ended(self, replica_id: str, outcome: EndReason | AttemptFailure) -> None:
        """Notes how the engine ended an attempt: the circuit opens after too many errors."""
        incarnation = self.incarnation
        if incarnation.replica_id != replica_id or incarnation.failing:
            return
        if isinstance(outcome, EndReason):
            incarnation.circuit.succeeded()
        elif engines_fault(outcome) and incarnation.circuit.failed(self._deps.clock.now_ms()):
            # Not its message: an engine's words may quote what a client sent.
            self._trip(f"too many attempts failed; the last: {outcome.kind.value}")
            incarnation.tasks.append(self._deps.spawn(self._probe(incarnation)))

    def _new_incarnation(self) -> Incarnation:
        replica_id = f"{self.pool_id}-{self._deps.random_hex(8)}"
        return Incarnation(replica_id, Circuit(self._circuit_limits))

    def _changed(self) -> None:
        self._deps.feed.publish(self.pool_id)

    def _set_drain(self) -> None:
        waits = Reason.OPERATOR if self.model.found else Reason.NONE
        self._supervisor.set_drain(waits if self._drain_asked is Reason.NONE else self._drain_asked)

    def _stop_attempts_after(self, timeout_ms: int) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(timeout_ms / 1000, self._keeper.drain_expired, self.pool_id)

    def _post(self, event: Event) -> None:
        before = self._supervisor.state()
        effects = self._supervisor.step(event, self._deps.clock.now_ms())
        after = self._supervisor.state()
        if after != before:
            told.changed(self.pool_id, self.incarnation.replica_id, after)
        self._perform(effects)
        self._reminder.keep(bool(self._supervisor.storm))
        if self._supervisor.phase is Phase.CLOSED:
            self.closed.set()
        self._changed()

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Effect.START_ENGINE:
                    if self.incarnation.gone.is_set():
                        self.incarnation = self._new_incarnation()
                        self._count_restart()
                    incarnation = self.incarnation
                    incarnation.tasks.append(self._deps.spawn(self._start(incarnation)))
                case Effect.STOP_ENGINE:
                    self.incarnation.failing = True
                    self._deps.spawn(self._stop(self.incarnation))
                case Effect.ARM_RETRY:
                    self._arm_retry()

    def _count_restart(self) -> None:
        # Of one that did not fail, a reload was asked for.
        reason, self._given_up_for = self._given_up_for, Reason.OPERATOR
        self._deps.telemetry.metrics.engine_restarted(self.pool_id, reason.value)

    def _arm_retry(self) -> None:
        retry_at_ms = self._supervisor.retry_at_ms
        assert retry_at_ms is not None, "ARM_RETRY comes with an instant"
        delay_ms = max(0, retry_at_ms - self._deps.clock.now_ms())
        self._timer = asyncio.get_running_loop().call_later(
            delay_ms / 1000, self._post, Event(Kind.RETRY_DUE)
        )

    async def _start(self, incarnation: Incarnation) -> None:
        came = await started(self.table, self.model.wanted, incarnation, self._deps, self._tester)
        if isinstance(came, EngineInfo):
            self._serving(incarnation, came)
        else:
            self._start_failed(incarnation, came)

    def _start_failed(self, incarnation: Incarnation, came: NotStarted) -> None:
        if not self.model.failed(came.problem[:DETAIL_CHARS_MAX]):
            self.fail(incarnation.replica_id, came.reason, came.problem, passing=came.passing)
            return
        detail = self._rolled_back(self.model.wanted, came.problem)
        self.model.roll_back(kept_former(detail, self.pool_id, DETAIL_CHARS_MAX))
        if not incarnation.failing:
            self._post(Event(Kind.ROLLED_BACK, came.reason, detail))

    def _serving(self, incarnation: Incarnation, info: EngineInfo) -> None:
        self.info = info
        self.model.served()
        assert incarnation.engine is not None, "a started incarnation has an engine"
        watchers = (
            self._watch_exit(incarnation, incarnation.engine),
            self._watch_health(incarnation, incarnation.engine),
        )
        incarnation.tasks.extend(self._deps.spawn(watcher) for watcher in watchers)
        self._post(Event(Kind.PRELOADED))

    def _trip(self, sentence: str) -> None:
        self._supervisor.trip(sentence[:DETAIL_CHARS_MAX])
        told.circuit(self.pool_id, sentence)
        self._changed()

    async def _probe(self, incarnation: Incarnation) -> None:
        """Tests an engine whose circuit is open until it passes, or is given up. ORCH-3040."""
        assert self.info is not None, "an engine that served has told what"
        found = self._tester.probes(incarnation, self.info, self._deps.jitter)
        async with contextlib.aclosing(found) as problems:
            async for problem in problems:
                if incarnation.circuit.given_up:
                    detail = f"its circuit is open and no probe passed; the last: {problem}"
                    self.fail(incarnation.replica_id, Reason.ENGINE_UNHEALTHY, detail)
                    return
                self._trip(problem and f"too many attempts failed, and so did a probe: {problem}")

    async def _watch_exit(self, incarnation: Incarnation, engine: Engine) -> None:
        reason, sentence = await exit_of(engine)
        self.fail(incarnation.replica_id, reason, sentence)

    async def _watch_health(self, incarnation: Incarnation, engine: Engine) -> None:
        sentence = await until_unhealthy(engine, self._deps.supervision)
        self.fail(incarnation.replica_id, Reason.ENGINE_UNHEALTHY, sentence)

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
            await incarnation.end(self.pool_id, self._deps.supervision.stop_timeout_ms)
        self._deps.preflight.gone(self.pool_id)
        incarnation.gone.set()
        self._post(Event(Kind.ENGINE_STOPPED, jitter=self._deps.jitter()))

    async def _reload(self) -> None:
        asked = {
            "pool_id": self.pool_id,
            "replica_id": self.incarnation.replica_id,
            "model_ref": shown_ref(self.model.next),
        }
        with self._deps.telemetry.span(SPAN_RELOAD, asked):
            await self._reload_when_idle()

    async def _reload_when_idle(self) -> None:
        with self._deps.feed.subscribe() as changes:
            busy = (Phase.STARTING, Phase.STOPPING)
            while not (self.model.found and self.idle and self._supervisor.phase not in busy):
                await (changes.next() if self.model.found else self._find())
                if self.model.asked is None:
                    return
        self.model.loading()
        # The time was for attempts before the reload; those after it have none.
        _cancel(self._reload_timer)
        self._reload_timeout_ms = None
        self._set_drain()
        _cancel(self._timer)
        self._post(Event(Kind.RELOAD, detail="an operator reloads the model"))

    async def _find(self) -> None:
        """Looks for the model of the reload: one that cannot be had costs no engine that serves."""
        asked = self.model.asked
        problem = await missing(self.table, self.model.next, self._deps) if self._serves else ""
        if self.model.asked != asked:
            # Another one counts by now.
            return
        if problem and self._serves:
            self._reload_timeout_ms = None
            detail = self._rolled_back(self.model.next, problem)
            kept = kept_former(detail, self.pool_id, DETAIL_CHARS_MAX)
            self.model.refuse(problem[:DETAIL_CHARS_MAX], kept)
        else:
            self.model.found = True
            self._limit_attempts()
        self._set_drain()
        self._changed()

    @property
    def _serves(self) -> bool:
        return self._supervisor.phase is Phase.SERVING

    def _rolled_back(self, model_ref: str, problem: str) -> str:
        """Logs why the model of a reload is not loaded, and says it for the pool's snapshots."""
        wanted = shown_ref(model_ref)
        detail = f"the model {wanted} could not be loaded: {problem}"[:DETAIL_CHARS_MAX]
        told.rolled_back(self.pool_id, wanted, detail)
        return detail

    def _limit_attempts(self) -> None:
        if self._reload_timeout_ms is not None:
            _cancel(self._reload_timer)
            self._reload_timer = self._stop_attempts_after(self._reload_timeout_ms)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
