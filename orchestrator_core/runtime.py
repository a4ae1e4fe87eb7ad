"""The owner of the core: turns what happens into events, and effects into what is done about it.

Everything runs on one event loop and `submit` never waits, so a step is never interrupted. It
sleeps until the core's next deadline; nothing is polled.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, assert_never

import structlog

from orchestrator_core import failpoints
from orchestrator_core.cancels import HeldCancels
from orchestrator_core.clock import Clock
from orchestrator_core.commit import CommitGate
from orchestrator_core.core.effects import (
    AcceptRecord,
    AttemptClosed,
    CancelUnconfirmed,
    CatalogRecord,
    ConfirmEnd,
    DispatchRecord,
    Effect,
    Gated,
    Immediate,
    JobEnded,
    JobForgotten,
    JobStarted,
    ModelClosed,
    ModelRefused,
    OfferDeclined,
    PoolDrainRecord,
    PoolVerified,
    Receipt,
    Record,
    ReplyAccepted,
    ReplyModel,
    ReplyPool,
    ReplyRefused,
    ReplySession,
    ReplyState,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
    Verdict,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    CancelRequested,
    EndConfirmed,
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
from orchestrator_core.core.outcome import Outcome, Reason, Refusal
from orchestrator_core.core.spec import JobSpec, StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.continuing import continuation
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay
from orchestrator_core.replies import Answer, Replies, Tell
from orchestrator_core.store.port import Store, StoreError, StoreTakenError
from orchestrator_core.wire import events as wire_events
from orchestrator_core.wire.frames import encode_event

STORE_RETRY_MS = 1_000
CatalogEvent: TypeAlias = ModelPut | ModelStateSet | ModelDeleted
READ_PATIENCE_S = 1.0
_SILENT = f"has not answered for {READ_PATIENCE_S:g} s"
# The event loop shows twice a second that it runs; lateness by more than this is a pause: the
# process was stopped, the machine slept, or something held the loop.
BEAT_MS = 500
PAUSE_MIN_MS = 500
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
        self._replies = Replies()
        self._gate = CommitGate(
            store,
            self._release,
            self._revert,
            self._store_failed,
            self._replies.__contains__,
            self._store_slow,
        )
        self._cancels = HeldCancels(hosts.cancel, self._stops_unwritten)
        self._thread = threading.get_ident()
        self._stepping = False
        self._beat_ms: int | None = None
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
        pause_ms = self._pause_ms(now_ms)
        try:
            if pause_ms:
                _log.warning("event_loop_paused", pause_ms=pause_ms, human=PAUSED)
                self._beat_ms = now_ms
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
        self._carry_out(effects)

    async def next_step(self) -> None:
        """Returns after the next step of the core, and what was done at once about it."""
        self._stepped.clear()
        await self._stepped.wait()

    async def watch_pauses(self) -> None:
        """Notes that the event loop runs, until cancelled; `submit` sees when it did not."""
        while True:
            self._beat_ms = self.clock.now_ms()
            await asyncio.sleep(BEAT_MS / 1000)
            self._look_for_pause()

    def _look_for_pause(self) -> None:
        """Lets the core know of a pause, although nothing else happens that it must know."""
        if self._pause_ms(self.clock.now_ms()):
            self.submit(Tick())

    def _pause_ms(self, now_ms: int) -> int:
        """For how long the loop stood still until now; 0 when it did not, or nobody watches."""
        if self._beat_ms is None:
            return 0
        late_ms = now_ms - self._beat_ms - BEAT_MS
        return late_ms if late_ms >= PAUSE_MIN_MS else 0

    def recover(self, recovered: Recovered) -> None:
        """Restores the journal's content, once, before anything else.

        Outcomes are told again from here; the output before them comes back from the hosts.
        """
        self.submit(recovered)
        for job in self.core.jobs.values():
            if job.live and job.attempt is not None:
                self.relay.log(job.job_id).doubtful = True
        for ended in recovered.terminals:
            if ended.job_id in self.core.jobs:
                self._ended(JobEnded(ended.job_id, ended.state, ended.outcome, ended.usage))

    async def enqueue(self, spec: JobSpec) -> Receipt:
        """Gives a job; returns once it is durable. Raises `RefusalError`."""
        if self._gate.degraded:
            raise RefusalError(_store_unavailable())
        receipt = await self._ask(lambda reply_to: EnqueueRequested(spec, reply_to))
        assert isinstance(receipt, Receipt)
        return receipt

    def certain(self) -> bool:
        """True when a job can be given now: nobody else can have the journal, and it is written."""
        self._look_for_pause()
        return not (self._gate.unsure or self._gate.degraded)

    def give(self, spec: JobSpec, tell: Tell) -> int:
        """Gives a job, while `certain`; tells of it as `enqueue` does. The number is for `forget`.

        `tell` may be called before this returns; it must not raise and not wait.
        """
        reply_to = self._replies.expect(tell)
        try:
            self.submit(EnqueueRequested(spec, reply_to))
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

    async def change_model(self, event: Callable[[int], CatalogEvent]) -> None:
        """Changes the catalog; `event` gets the number of the reply. Returns once it is durable.

        Raises:
            RefusalError: what the core says; STORE_UNAVAILABLE, when that takes longer than a
            second. It is done all the same, as soon as it can be written.
        """
        await self._ask_briefly(event)

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
        self._look_for_pause()
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                await self._gate.settled(job_id)
        except TimeoutError:
            raise RefusalError(_store_unavailable(_SILENT)) from None
        except StoreError:
            raise RefusalError(_store_unavailable()) from None

    async def drains_settled(self) -> None:
        """Waits until every drain, or its end, is durable; for a second, while the journal is down.

        Then `undurable_drains` names those that a restart would forget.
        """
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
        now_ms = self.clock.now_ms()
        event = wire_events.metrics(
            self.core.queue_depth(),
            self.core.on_time_probability(job, now_ms) if job.live else None,
            self.core.remaining(job, now_ms),
            kv_warmth=job.attempt is not None and job.attempt.kv_warmth,
        )
        log.set_metrics(encode_event(event))

    def announce_ended(self, job_id: str, attempt: int, *, kv_warmth: bool) -> None:
        """Tells readers of an ended job, whose output a host still holds, of which attempt it is.

        After a restart nobody here has told them; the core has no part in a job that is over.
        """
        job = self.core.jobs.get(job_id)
        if job is None or job.live or self.core.stopping(job_id, attempt):
            return
        if not self.relay.log(job_id).announced(attempt):
            self._started(JobStarted(job_id, attempt, StartMode.FRESH, kv_warmth))

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
        self._cancels.close()
        self._replies.refuse_all(_store_unavailable())

    # --- out

    def _observe(self, effects: Sequence[Effect], now_ms: int) -> None:
        """Telemetry must not bring down what it watches."""
        try:
            self._observer.observe(effects, self.core, now_ms)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is logged and the job goes on
            _log.error("telemetry_failed", exc_info=error, human="A bug in telemetry: report it.")

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        records: list[Record] = []
        gated: list[Gated] = []
        for effect in effects:
            match effect:
                case AcceptRecord() | DispatchRecord():
                    records.append(effect)
                case TerminalRecord():
                    records.append(self._with_output(effect))
                case SessionRecord() | SessionForgotten() | PoolDrainRecord() | CatalogRecord():
                    records.append(effect)
                case (
                    ReplyRefused()
                    | JobStarted()
                    | OfferDeclined()
                    | SendVerdicts()
                    | AttemptClosed()
                    | CancelUnconfirmed()
                    | ModelRefused()
                    | PoolVerified()
                    | ModelClosed()
                    | JobForgotten()
                ):
                    self._immediate(effect)
                case SendCancel():
                    self._cancels.hold(effect)
                    gated.append(effect)
                case _:
                    gated.append(effect)
        if records or gated:
            self._gate.add(records, gated)

    def _stops_unwritten(self, effect: SendCancel) -> bool:
        """True when an attempt may be stopped although the end of its job is not durable.

        A crash then leaves a live job whose attempt is over, so only for one that its client gave
        up: nobody has been told that it ended, nobody wants its output. A start that has not been
        sent must not be overtaken, and another orchestrator may go on with the job.
        """
        job = self.core.jobs.get(effect.job_id)
        given_up = job is not None and job.state is JobState.CANCELLED
        bound = self.hosts.bound(effect.host_id, (effect.job_id, effect.attempt))
        return given_up and bound and not self._gate.unsure

    def _with_output(self, record: TerminalRecord) -> TerminalRecord:
        """Notes in the record of a job that did not finish how much output it ended with. LO-305.

        From here on nothing is added, so that followers get the same after a restart.
        """
        log = self.relay.log(record.job_id)
        if record.state is JobState.FINISHED:
            return record
        log.sealed = True
        if log.doubtful:
            return record
        outcome = replace(record.outcome, text_bytes=log.next_offset, text_digest=log.digest())
        return replace(record, outcome=outcome)

    def _immediate(self, effect: Immediate) -> None:
        match effect:
            case ReplyRefused() | ModelRefused():
                self._replies.answer(effect.reply_to, effect.refusal)
            case JobStarted():
                self._started(effect)
            case SendVerdicts():
                self.hosts.send_verdicts(effect, self.relay)
                self._tell_adopted(effect)
            case AttemptClosed():
                self.hosts.unbind(effect.job_id, effect.attempt)
                if effect.retried:
                    self.relay.log(effect.job_id).wake()
            case JobForgotten():
                self.relay.forget(effect.job_id)
            case OfferDeclined() | CancelUnconfirmed() | PoolVerified() | ModelClosed():
                pass  # for the observer only
            case _:
                assert_never(effect)

    def _release(self, effect: Gated) -> None:
        match effect:
            case ReplyAccepted():
                self._replies.answer(effect.reply_to, effect.receipt)
            case ReplyState():
                self._replies.answer(effect.reply_to, effect.job_id)
            case ReplySession(told, name) | ReplyPool(told, name) | ReplyModel(told, name):
                self._replies.answer(told, name)
            case SendStart():
                self._start(effect)
            case SendCancel():
                self._cancels.durable(effect)
            case SendRelease():
                self.hosts.release(effect)
            case SendDrain():
                self.hosts.drain(effect)
            case ConfirmEnd():
                self.submit(EndConfirmed(effect.job_id))
            case JobEnded():
                self._ended(effect)
            case _:
                assert_never(effect)

    def _start(self, effect: SendStart) -> None:
        """Sends an attempt, unless it stopped counting while its record was written."""
        job_id, attempt = effect.spec.job_id, effect.attempt
        if not self.core.holds_slot(job_id, attempt):
            return
        log = self.relay.log(job_id)
        if effect.mode is StartMode.FRESH:
            log.doubtful = False  # Nothing was delivered before.
        follows = None
        if effect.mode is StartMode.CONTINUE:
            job = self.core.jobs.get(job_id)
            follows = continuation(effect, log, job.unreleased if job is not None else None)
        if isinstance(follows, AttemptEnded):
            self.submit(follows)
            return
        traceparent = self._observer.dispatch_traceparent(job_id, attempt)
        self.hosts.start(effect, log, traceparent, follows)

    def _started(self, effect: JobStarted) -> None:
        job = self.core.jobs.get(effect.job_id)
        if job is None or job.attempt is None:
            return
        attempt, replica_set = job.attempt, job.replica_set or ("", "", "", "")
        where = wire_events.Where(
            attempt.pool_id, attempt.replica_id, replica_set[0], replica_set[1]
        )
        offset = self.relay.log(effect.job_id).next_offset
        event = wire_events.started_or_resumed(job, effect, where, offset)
        self.relay.append_event(effect.job_id, encode_event(event))

    def _tell_adopted(self, effect: SendVerdicts) -> None:
        """Output of a job that ended before a restart comes again: first, who made it."""
        for job_id, attempt, verdict in effect.verdicts:
            job = self.core.jobs.get(job_id)
            ended = verdict is Verdict.ADOPT and job is not None and not job.live
            if ended and not self.relay.log(job_id).announced(attempt):
                self._started(JobStarted(job_id, attempt, StartMode.FRESH, kv_warmth=False))

    def _ended(self, effect: JobEnded) -> None:
        if effect.job_id not in self.core.jobs:
            return
        log = self.relay.log(effect.job_id)
        # Of a job that did not finish it is known only from the journal; else all of it is here.
        expected, digest = effect.outcome.text_bytes, effect.outcome.text_digest
        text_bytes = log.next_offset if expected is None else expected
        if effect.state is JobState.CANCELLED and log.next_index:
            # The engine's own count comes too late for a cancelled job; pieces delivered are known.
            effect = replace(effect, usage=replace(effect.usage, tokens_out=log.next_index))
        error = effect.outcome.error
        if error is not None and error.reason is Reason.WORKER_RESET:
            told = error.metadata | {"text_offset": str(text_bytes)}
            effect = replace(effect, outcome=Outcome(error=replace(error, metadata=told)))
        output = wire_events.Output(text_bytes, log.digest() if expected is None else digest)
        entry = encode_event(wire_events.ended(effect, output))
        failpoints.reach("end.before")
        self.relay.finish(effect.job_id, entry, expected, digest)
        failpoints.reach("end.after")

    def _revert(
        self, job_ids: tuple[str, ...], replies: Sequence[ReplyAccepted | ReplyState]
    ) -> None:
        """Takes back accepts that could not be written, and tells who waited for them."""
        self.submit(AcceptsFailed(job_ids))
        for effect in replies:
            self._replies.answer(effect.reply_to, _store_unavailable())

    def _store_failed(self, error: StoreError) -> None:
        _log.error(
            "store_failed",
            error=str(error),
            human="The journal cannot be written; no job is accepted until it can.",
        )

    def _store_slow(self, took_s: float) -> None:
        _log.warning(
            "store_slow",
            took_ms=int(took_s * 1000),
            human=f"The journal took {took_s:.1f} s to write; who asked about a job meanwhile, or "
            "cancelled one, was refused. Look at its disk, and at the load of this machine.",
        )

    # --- replies and time

    async def _ask(self, event: Callable[[int], Event]) -> Answer:
        await self.sure()
        reply_to, future = self._replies.future()
        try:
            self.submit(event(reply_to))
            return await future
        finally:
            self.forget(reply_to)

    async def _ask_briefly(self, event: Callable[[int], Event]) -> None:
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                await self._ask(event)
        except TimeoutError:
            raise RefusalError(_store_unavailable(_SILENT)) from None

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


def _store_unavailable(trouble: str = "cannot be written") -> Refusal:
    message = f"the journal {trouble}, so nothing can be promised; see the server's log"
    return Refusal(Reason.STORE_UNAVAILABLE, message, STORE_RETRY_MS)
