"""The owner of the core: turns what happens into events, and has the effects carried out.

Everything runs on one event loop and `submit` never waits, so a step is never interrupted. It
sleeps until the core's next deadline; nothing is polled.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

import structlog

from orchestrator_core.carrying import Carrying, store_unavailable
from orchestrator_core.clock import Clock, ClockWatch
from orchestrator_core.core.catalog_model import CatalogEntry
from orchestrator_core.core.effects import Effect, JobEnded, Receipt
from orchestrator_core.core.events import (
    CancelRequested,
    EnqueueRequested,
    Event,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    OutputProgressed,
    PoolDrainRequested,
    Recovered,
    SessionDeleted,
    Stalled,
    Tick,
)
from orchestrator_core.core.job import Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.pauses import Pauses
from orchestrator_core.relay.relay import Relay
from orchestrator_core.replies import Answer, Tell
from orchestrator_core.store.port import Store, StoreError, StoreTakenError

CatalogEvent: TypeAlias = ModelPut | ModelStateSet | ModelDeleted
READ_PATIENCE_S = 1.0
_SILENT = f"has not answered for {READ_PATIENCE_S:g} s"
PAUSED = "The process stood still; whoever was silent meanwhile is given that time on top."

_log = structlog.get_logger("orchestratord")


class Observer(Protocol):
    """Sees every step; makes spans, metrics and log lines of it."""

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """Called right after each step."""
        ...

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """W3C trace context for an attempt; empty when there is none."""
        ...


class Runtime:
    """Runs one core. `submit` must be called from the thread that made the runtime."""

    def __init__(
        self, core: Core, store: Store, clock: Clock, relay: Relay, hosts: Hosts, observer: Observer
    ) -> None:
        self.core = core
        self.clock = clock
        self.relay = relay
        self.hosts = hosts
        self._observer = observer
        self._carrying = Carrying(
            core, store, relay, hosts, self.submit, observer.dispatch_traceparent
        )
        self._gate = self._carrying.gate
        self._replies = self._carrying.replies
        self.followers = self._carrying.followers
        self._pauses = Pauses(clock)
        self._clock_watch = ClockWatch(clock)
        self._thread = threading.get_ident()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self.idle = asyncio.Event()
        self.steps = 0
        self._stepped = asyncio.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- in

    def submit(self, event: Event) -> None:
        """Applies one event.

        Raises:
            RuntimeError: when called from another thread, from within a step, or after a step
            broke.
        """
        if self.failed.done():
            raise RuntimeError("an earlier step broke; the orchestrator must restart")
        if threading.get_ident() != self._thread or self._stepping:
            raise RuntimeError("submit belongs to the event loop's thread and is not reentrant")
        now_ms = self.clock.now_ms()
        pause_ms = self._pauses.pause_ms(now_ms)
        try:
            if pause_ms:
                _log.warning("event_loop_paused", pause_ms=pause_ms, human=PAUSED)
                self._pauses.told(now_ms)
                # Time enough for another orchestrator to take over.
                self._gate.confirm()
                self._step(Stalled(pause_ms), now_ms)
            self._step(event, now_ms)
            self._arm_timer(now_ms)
        except Exception as error:
            # A step that broke off may have left half of a decision: only a restart, which rebuilds
            # the core from the journal, is safe. `failed` brings the process down.
            if not self.failed.done():
                self.failed.set_exception(error)
            raise
        if self.core.live_attempts:
            self.idle.clear()
        else:
            self.idle.set()

    def _step(self, event: Event, now_ms: int) -> None:
        self._stepping = True
        effects = self.core.step(event, now_ms)
        self._stepping = False
        self.steps += 1
        self._stepped.set()
        self._observe(effects, now_ms)
        self._carrying.effects(effects)

    async def next_step(self) -> None:
        """Returns after the next step of the core, and what was done at once about it."""
        self._stepped.clear()
        await self._stepped.wait()

    async def watch_pauses(self) -> None:
        """Notes that the event loop runs, until cancelled; `submit` sees when it did not."""
        await self._pauses.watch(self._look)

    def _look(self) -> None:
        self._clock_watch.look()
        self._look_for_pause()

    def _look_for_pause(self) -> None:
        """Lets the core know of a pause, although nothing else happens that it must know."""
        if self._pauses.pause_ms(self.clock.now_ms()):
            self.submit(Tick())

    def recover(self, recovered: Recovered) -> None:
        """Restores the journal's content, once, before anything else.

        Outcomes are told again from here; the output before them comes back from the hosts. Their
        grace does not run while a long journal is taken up: nobody is heard meanwhile.
        """
        self._pauses.told(self.clock.now_ms())
        self.submit(recovered)
        for job in self.core.jobs.values():
            if job.live and job.attempt is not None:
                self.relay.log(job.job_id).doubtful = True
        for ended in recovered.terminals:
            if ended.job_id in self.core.jobs:
                self.followers.ended(
                    JobEnded(ended.job_id, ended.state, ended.outcome, ended.usage)
                )

    async def enqueue(self, spec: JobSpec, stale: Refusal | None = None) -> Receipt:
        """Gives a job; returns once it is durable. `stale` as in `EnqueueRequested`.

        Raises:
            RefusalError: what the core says, or STORE_UNAVAILABLE.
        """
        if self._gate.degraded:
            raise RefusalError(store_unavailable())
        receipt = await self._ask(lambda reply_to: EnqueueRequested(spec, reply_to, stale))
        assert isinstance(receipt, Receipt)
        return receipt

    def certain(self) -> bool:
        """True when a job can be given now: nobody else can have the journal, and it is written."""
        self._look_for_pause()
        return not (self._gate.unsure or self._gate.degraded)

    def give(self, spec: JobSpec, tell: Tell, stale: Refusal | None = None) -> int:
        """Gives a job, while `certain`; tells of it as `enqueue` does. The number is for `forget`.

        `tell` may be called before this returns; it must not raise and not wait.
        """
        reply_to = self._replies.expect(tell)
        try:
            self.submit(EnqueueRequested(spec, reply_to, stale))
        except BaseException:
            self._replies.forget(reply_to)
            raise
        return reply_to

    def forget(self, reply_to: int) -> None:
        """Nobody waits for a reply any more; what it is about happens all the same. Idempotent."""
        if self._replies.forget(reply_to):
            self._gate.give_up()

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job; returns it once its state is durable.

        Raises:
            RefusalError: NOT_FOUND; STORE_UNAVAILABLE, when that takes longer than a second. The
            engine is stopped all the same, see `cancels`, and the outcome follows as soon as it can
            be written.
        """
        await self._ask_briefly(lambda reply_to: CancelRequested(job_id, reply_to))
        return self.job(job_id)

    async def delete_session(self, identity: str, session_id: str) -> None:
        """Forgets a session; returns once that is durable.

        Raises:
            RefusalError: NOT_FOUND; STORE_UNAVAILABLE, when that takes longer than a second. It is
            forgotten all the same, as soon as that can be written.
        """
        await self._ask_briefly(lambda to: SessionDeleted(identity, session_id, to))

    async def drain_pool(self, pool_id: str, timeout_ms: int, *, draining: bool) -> None:
        """Drains a pool for `timeout_ms` at most, or ends that; returns once it is durable.

        Raises:
            RefusalError: NOT_FOUND; STORE_UNAVAILABLE, when that takes longer than a second. It is
            done all the same, as soon as it can be written.
        """
        await self._ask_briefly(lambda to: PoolDrainRequested(pool_id, draining, timeout_ms, to))

    async def change_model(
        self, model_id: str, event: Callable[[int], CatalogEvent]
    ) -> CatalogEntry | None:
        """Changes the catalog; `event` gets the number of the reply. Returns once it is durable.

        What is returned is the model as this change left it, whatever was done to it since; None
        where that deleted it.

        Raises:
            RefusalError: what the core says; STORE_UNAVAILABLE, when that takes longer than a
            second. It is done all the same, as soon as it can be written.
        """
        left: list[CatalogEntry | None] = []
        await self._ask_briefly(event, lambda: left.append(self.core.catalog.entries.get(model_id)))
        return left[0]

    def job(self, job_id: str) -> Job:
        """Looks a job up. Raises `RefusalError` NOT_FOUND."""
        job = self.core.jobs.get(job_id)
        if job is None:
            message = f"no job {job_id!r} is known; it may have ended longer ago than the retention"
            raise RefusalError(Refusal(Reason.NOT_FOUND, message, resource=job_id))
        return job

    def inputs_in_use(self) -> set[str]:
        """Artifacts that are the input of jobs which have not ended. O(jobs)."""
        jobs = self.core.jobs.values()
        return {job.spec.input_artifact for job in jobs if job.live and job.spec.input_artifact}

    async def sure(self) -> None:
        """Returns once nobody can have taken the journal over while this process stood still.

        Before, what the core knows may be out of date, and so would be a refusal. Raises as
        `settled`.
        """
        self._look_for_pause()
        if self._gate.unsure:
            await self.settled()

    async def settled(self, job_id: str | None = None) -> None:
        """Waits until what was read about a job, or about all, is durable.

        A reader that was told of an outcome must not find another one after a crash, or with the
        orchestrator that took over while this one stood still.

        Raises:
            RefusalError: STORE_UNAVAILABLE, when that takes longer than a second.
        """
        await self._settled(lambda: self._gate.settled(job_id))

    async def catalog_settled(self) -> None:
        """Waits until the catalog, as it is when this returns, is durable. Raises as `settled`."""
        await self._settled(self._gate.catalog_settled)

    async def _settled(self, settled: Callable[[], Awaitable[None]]) -> None:
        self._look_for_pause()
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                await settled()
        except TimeoutError:
            raise RefusalError(store_unavailable(_SILENT)) from None
        except StoreError:
            raise RefusalError(store_unavailable()) from None

    async def drains_settled(self) -> None:
        """Waits until every drain, or its end, is durable; for a second, while the journal is down.

        Then `undurable_drains` names those that a restart would forget. Raises as `settled` where
        somebody else may have the journal: what is known here counts no more.
        """
        await self.sure()
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(READ_PATIENCE_S):
                await self._gate.drains_settled()

    def undurable_drains(self) -> set[str]:
        """Pools whose drain, or the end of it, is not durable yet."""
        return self._gate.undurable_drains()

    def text_arrived(self, job: Job, attempt: int) -> None:
        """Output of a job was relayed: tells the core, and followers how the job is doing."""
        log = self.relay.log(job.job_id)
        self.submit(OutputProgressed(job.job_id, attempt, log.next_index))
        self.followers.progressed(job, log, self.clock.now_ms())

    async def run(self) -> None:
        """Commits what is decided, until cancelled.

        Raises:
            StoreTakenError: when another orchestrator has the journal. Nothing more is promised,
            and whoever waits is told so.
        """
        try:
            await self._gate.run()
        except StoreTakenError as error:
            self._gate.abandon(error)
            self.close()
            raise

    async def flush(self) -> None:
        """Returns once everything decided is durable and sent."""
        await self._gate.flush()

    def close(self) -> None:
        """Stops the timer and refuses who still waits."""
        if self._timer is not None:
            self._timer.cancel()
        self._carrying.close()

    # --- out

    def _observe(self, effects: Sequence[Effect], now_ms: int) -> None:
        """Telemetry must not bring down what it watches."""
        try:
            self._observer.observe(effects, self.core, now_ms)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is logged and the job goes on
            _log.error("telemetry_failed", exc_info=error, human="A bug in telemetry: report it.")

    # --- replies and time

    async def _ask(
        self, event: Callable[[int], Event], decided: Callable[[], None] = lambda: None
    ) -> Answer:
        """Asks the core; calls `decided` in the same turn of the loop."""
        await self.sure()
        reply_to, future = self._replies.future()
        try:
            self.submit(event(reply_to))
            decided()
            return await future
        finally:
            self.forget(reply_to)

    async def _ask_briefly(
        self, event: Callable[[int], Event], decided: Callable[[], None] = lambda: None
    ) -> None:
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                await self._ask(event, decided)
        except TimeoutError:
            raise RefusalError(store_unavailable(_SILENT)) from None

    def _arm_timer(self, now_ms: int) -> None:
        due_ms = self.core.next_deadline_ms()
        if due_ms == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = None
        if due_ms is not None:
            delay_s = max(0, due_ms - now_ms) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_ms = None
        self.submit(Tick())
