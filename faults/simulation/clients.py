"""Clients of a simulation: the real client library, and a record of what each of them was told."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

from faults import history as h
from faults.simulation.orchestrator import ADDRESS, EPOCH_MS
from faults.simulation.recorder import Recorder
from faults.simulation.virtual_time import Process
from llamaorch_client import errors, events
from llamaorch_client.aio import AsyncClient
from llamaorch_client.exchange import Exchange
from llamaorch_client.exchange_job import ExchangeJob
from llamaorch_client.model import JobState, Receipt
from llamaorch_client.options import (
    ClientOptions,
    ExchangeOptions,
    RetryOptions,
    StreamOptions,
    Timing,
)
from llamaorch_client.request import (
    Determinism,
    FailoverPolicy,
    JobRequest,
    KvHint,
    OnDisconnect,
    Priority,
    Sampling,
)
from llamaorch_client.stream import JobStream

Door = AsyncClient | Exchange
"""Through what a job is given, followed and cancelled: calls of its own, or a stream for many."""

_FIRM = (
    errors.RejectedError,
    errors.InvalidParamsError,
    errors.IncompatibleError,
    errors.DuplicateError,
    errors.CatalogError,
    errors.NotFoundError,
)
"""Errors that say that nothing was accepted."""

_TRIES_MAX = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """One job and what its client does about it. Times are milliseconds; None: never.

    `deadline_ms` counts from the start of the run. The first reader pauses for `pause_ms` after
    each event; each other comes `late_ms` after the one before it.
    """

    request_id: str
    at_ms: int
    tokens: int
    seed: int
    batch: bool = False
    deterministic: bool = False
    failover: FailoverPolicy = FailoverPolicy.VERIFIED_REPLAY
    cancel_on_disconnect: bool = False
    repeat_after_ms: int | None = None
    cancel_after_ms: int | None = None
    leave_after_ms: int | None = None
    readers: int = 1
    pause_ms: int = 0
    late_ms: int = 0
    exchange: bool = False
    model: str = "m"
    looks_ms: tuple[int, ...] = ()
    session: str = ""
    deadline_ms: int | None = None

    @property
    def prompt(self) -> str:
        """What the engine is asked."""
        return f"tell me about {self.request_id}"

    def request(self) -> JobRequest:
        """The job as the library takes it."""
        return JobRequest(
            model_id=self.model,
            prompt=self.prompt,
            request_id=self.request_id,
            priority=Priority.BATCH if self.batch else Priority.INTERACTIVE,
            sampling=Sampling(seed=self.seed, max_tokens=self.tokens),
            determinism=Determinism.REQUIRED if self.deterministic else Determinism.BEST_EFFORT,
            failover=self.failover,
            session_id=self.session,
            kv_hint=KvHint.REUSE if self.session else KvHint.NONE,
            deadline=None if self.deadline_ms is None else _instant(self.deadline_ms),
            on_disconnect=(
                OnDisconnect.CANCEL if self.cancel_on_disconnect else OnDisconnect.CONTINUE
            ),
        )


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp((EPOCH_MS + at_ms) / 1000, UTC)


@dataclass(slots=True)
class _Text:
    """What one reader has of a job's output, and how long it takes over each event."""

    pause_ms: int
    attempt: int = 0
    pieces: list[str] = field(default_factory=list)
    ended: bool = False

    def point(self) -> events.ResumePoint | None:
        return events.ResumePoint(self.attempt, "".join(self.pieces)) if self.attempt else None


class SimulatedClient:
    """One client process with its plans. `run` ends when it has done and seen everything."""

    def __init__(
        self,
        name: str,
        plans: list[Plan],
        exchange: ExchangeOptions,
        recorder: Recorder,
        chance: random.Random,
    ) -> None:
        self.process = Process(name)
        self.idle = False
        self.job_ids: dict[str, str] = {}
        self._name = name
        self._plans = plans
        self._recorder = recorder
        self._streams = 0
        self._begun: dict[str, ExchangeJob] = {}
        timing = Timing(lambda: recorder.now_ms, _sleep_ms, chance.random)
        self._options = ClientOptions(
            retry=RetryOptions(attempts_max=4, time_max_ms=20_000),
            stream=StreamOptions(retry=RetryOptions(attempts_max=8, time_max_ms=30_000)),
            exchange=exchange,
            rpc_timeout_ms=8_000,
            timing=timing,
        )

    async def run(self) -> None:
        """Carries out every plan."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(ADDRESS, options=self._options))
            doors: dict[bool, Door] = {False: client}
            if any(plan.exchange for plan in self._plans):
                doors[True] = await stack.enter_async_context(client.exchange())
            work = [self._job(client, doors[plan.exchange], plan) for plan in self._plans]
            await asyncio.gather(*work)
        self.idle = True

    async def last_look(self) -> None:
        """Asks for every job until it has ended, also for those that are accepted late."""
        asked: set[str] = set()
        async with AsyncClient(ADDRESS, options=self._options) as client:
            while not self.idle or asked != set(self.job_ids.values()):
                new = [job_id for job_id in self.job_ids.values() if job_id not in asked]
                asked.update(new)
                await asyncio.gather(*(self._until_ended(client, job_id) for job_id in new))
                await asyncio.sleep(1.0)

    async def _until_ended(self, client: AsyncClient, job_id: str) -> None:
        for _ in range(_TRIES_MAX):
            state = await self._look(client, job_id)
            if state in h.TERMINAL_STATES or state == h.UNKNOWN_JOB:
                return
            await asyncio.sleep(1.0)

    async def _job(self, client: AsyncClient, door: Door, plan: Plan) -> None:
        await asyncio.sleep(plan.at_ms / 1000)
        work: list[Awaitable[None]] = [self._first(client, door, plan)]
        if plan.repeat_after_ms is not None:
            work.append(self._after(plan.repeat_after_ms, lambda: self._enqueue(client, plan)))
        await asyncio.gather(*work)

    async def _first(self, client: AsyncClient, door: Door, plan: Plan) -> None:
        await self._enqueue(door, plan)
        job_id = self.job_ids.get(plan.request_id)
        if job_id is None:
            return
        work: list[Awaitable[None]] = [
            self._follow(door, plan, job_id, number) for number in range(plan.readers)
        ]
        if plan.cancel_after_ms is not None:
            work.append(self._after(plan.cancel_after_ms, lambda: self._cancel(door, job_id)))
        work += [
            self._after(look_ms, lambda: self._look_once(client, job_id))
            for look_ms in plan.looks_ms
        ]
        await asyncio.gather(*work)

    async def _after(self, wait_ms: int, work: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(wait_ms / 1000)
        await work()

    async def _enqueue(self, door: Door, plan: Plan) -> None:
        told = {"client": self._name, "request_id": plan.request_id}
        for _ in range(_TRIES_MAX):
            self._tell(h.EnqueueSent, **told, priority="BATCH" if plan.batch else "INTERACTIVE")
            try:
                receipt = await self._given(door, plan.request())
            except _FIRM as error:
                self._tell(h.EnqueueRefused, **told, reason=error.reason)
                return
            except errors.LlamaOrchError as error:
                self._tell(h.EnqueueUnknown, **told, reason=error.reason)
                await asyncio.sleep(0.5)
            else:
                self.job_ids[plan.request_id] = receipt.job_id
                self._tell(h.EnqueueAcked, **told, job_id=receipt.job_id)
                return

    async def _given(self, door: Door, request: JobRequest) -> Receipt:
        """Gives a job; on an exchange it is followed from then on."""
        if isinstance(door, AsyncClient):
            return await door.enqueue(request)
        job = await door.run(request, failures_as_events=True)
        assert job.receipt is not None, "it was accepted"
        self._begun[job.receipt.job_id] = job
        return job.receipt

    # --- following

    async def _follow(self, door: Door, plan: Plan, job_id: str, number: int) -> None:
        text = _Text(0 if number else plan.pause_ms)
        await asyncio.sleep(number * plan.late_ms / 1000)
        if plan.leave_after_ms is not None and number == 0:
            try:
                async with asyncio.timeout(plan.leave_after_ms / 1000):
                    await self._read(door, job_id, text, observer=False)
            except TimeoutError:
                await asyncio.sleep(plan.leave_after_ms / 1000)
        for _ in range(_TRIES_MAX):
            if text.ended:
                return
            await self._read(door, job_id, text, observer=number > 0)
            await asyncio.sleep(0.5)

    async def _read(self, door: Door, job_id: str, text: _Text, *, observer: bool) -> None:
        self._streams += 1
        told = {"client": self._name, "stream": f"s{self._streams}", "job_id": job_id}
        point = text.point()
        self._tell(
            h.StreamOpened,
            **told,
            attempt=text.attempt,
            text_offset=point.text_offset if point else 0,
            acknowledges=self._acknowledges(door, observer=observer),
        )
        try:
            async with await self._opened(door, job_id, point, observer=observer) as stream:
                async for event in stream:
                    self._seen(event, told, text)
                    await asyncio.sleep(text.pause_ms / 1000)
        except errors.LlamaOrchError as error:
            self._tell(h.StreamBroken, **told, reason=error.reason)
            given_up = (errors.IntegrityError, errors.ResumeWindowError, errors.NotFoundError)
            text.ended = isinstance(error, given_up)

    def _acknowledges(self, door: Door, *, observer: bool) -> bool:
        return isinstance(door, Exchange) and self._options.exchange.acknowledge and not observer

    async def _opened(
        self, door: Door, job_id: str, point: events.ResumePoint | None, *, observer: bool
    ) -> JobStream | ExchangeJob:
        if isinstance(door, AsyncClient):
            return door.stream(job_id, point, observer, failures_as_events=True)
        begun = None if point or observer else self._begun.pop(job_id, None)
        return begun or await door.subscribe(
            job_id, point, observer=observer, failures_as_events=True
        )

    def _seen(self, event: events.Event, told: dict[str, str], text: _Text) -> None:
        match event:
            case events.Started():
                self._tell(h.Started, **told, attempt=event.attempt)
            case events.Resumed():
                self._tell(
                    h.Resumed,
                    **told,
                    attempt=event.attempt,
                    mode=event.mode.value,
                    text_offset=event.text_offset,
                )
            case events.Tokens():
                text.attempt = event.attempt
                text.pieces.append(event.text)
                self._tell(
                    h.TextDelivered,
                    **told,
                    attempt=event.attempt,
                    text_offset=event.text_offset,
                    text=event.text,
                )
            case events.End():
                text.ended = True
                state, size = event.state.value, event.text_bytes
                tokens = event.usage.tokens_out
                self._tell(h.Outcome, **told, state=state, text_bytes=size, tokens_out=tokens)
            case events.Failed():
                text.ended = True
                reason = event.error.reason
                self._tell(h.Outcome, **told, state=_state_of(reason), reason=reason)
            case _:
                pass

    # --- asking

    async def _cancel(self, door: Door, job_id: str) -> None:
        asked = {"client": self._name, "job_id": job_id}
        asked_ms = self._recorder.now_ms
        self._tell(h.CancelSent, **asked)
        try:
            job = await door.cancel(job_id)
        except errors.NotFoundError:
            self._tell(h.CancelAnswered, **asked, state=h.UNKNOWN_JOB, asked_ms=asked_ms)
        except errors.LlamaOrchError:
            pass
        else:
            self._tell(h.CancelAnswered, **asked, state=job.state.value, asked_ms=asked_ms)

    async def _look_once(self, client: AsyncClient, job_id: str) -> None:
        await self._look(client, job_id)

    async def _look(self, client: AsyncClient, job_id: str) -> str:
        asked = {"client": self._name, "job_id": job_id, "asked_ms": self._recorder.now_ms}
        try:
            state = (await client.get_job(job_id)).state.value
        except errors.NotFoundError:
            state = h.UNKNOWN_JOB
        except errors.LlamaOrchError:
            return JobState.UNSPECIFIED.value
        self._tell(h.StatusSeen, **asked, state=state)
        return state

    def _tell(self, kind: Callable[..., h.AnyEvent], **fields: object) -> None:
        self._recorder.record(self.process, kind, **fields)


_STATES = {"QUEUE_FULL_DROP_LRU": "DROPPED", "DEADLINE": "EXPIRED", "DECODE_TIMEOUT": "EXPIRED"}


def _state_of(reason: str) -> str:
    """The state of a job that ended with an error."""
    return _STATES.get(reason, "FAILED")


async def _sleep_ms(delay_ms: float) -> None:
    await asyncio.sleep(delay_ms / 1000)
