"""Clients of a campaign: the real client library, writing down what it saw."""

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from faults import history
from faults.chaos.fleet import HarnessError
from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    Determinism,
    End,
    Event,
    Failed,
    FailoverPolicy,
    LlamaOrchError,
    Resumed,
    ResumeMode,
    RetryOptions,
    Sampling,
    Started,
    StreamOptions,
    Tokens,
)
from llamaorch_client.stream import JobStream

# A campaign ends by its own time limit; within it a client does not give up.
PATIENT = RetryOptions(attempts_max=1_000, time_max_ms=600_000, backoff_max_ms=500)
TRIES_MAX = 300
TRY_EVERY_S = 0.2
STATE_OF_REASON = {
    "DEADLINE": "EXPIRED",
    "DECODE_TIMEOUT": "EXPIRED",
    "QUEUE_FULL_DROP_LRU": "DROPPED",
}
OPTIONS = ClientOptions(retry=PATIENT, stream=StreamOptions(retry=PATIENT), rpc_timeout_ms=5_000)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a job asks for. Equal tasks give equal bytes on an engine that is deterministic."""

    model_id: str
    prompt: str
    sampling: Sampling
    exact: bool = True
    failover: FailoverPolicy | None = None


@dataclass(slots=True)
class Following:
    """One stream while it is followed.

    `broken_ms`: since when a fault keeps it from going on. `owed`: a fault came before its output,
    which the next fault must not make a double one.
    """

    job_id: str = ""
    pool_id: str = ""
    running: bool = False
    broken_ms: int | None = None
    hits: int = 0
    owed: bool = False


@dataclass(slots=True)
class Notes:
    """Everything that all clients saw.

    `resume_ms` is from a kill to a stream's next output, also where more faults came before that;
    `resume_once_ms` is where none did.
    """

    events: list[history.AnyEvent] = field(default_factory=list)
    following: dict[str, Following] = field(default_factory=dict)
    resume_ms: list[int] = field(default_factory=list)
    resume_once_ms: list[int] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    resumes: int = 0
    replays: int = 0
    continuations: int = 0
    restarts: int = 0

    def fault(self, hits: Callable[[str], bool]) -> None:
        """A fault hit the pools that `hits` names: running streams of theirs must resume.

        One on another pool may hit a stream too that is broken already; it does not count.
        """
        for following in self.following.values():
            following.owed = following.owed or not following.pool_id or hits(following.pool_id)
            if following.running and hits(following.pool_id):
                following.hits += 1
                following.broken_ms = following.broken_ms or now_ms()


def now_ms() -> int:
    """Wall time: the clock that the services' logs and their journal use too."""
    return int(dt.datetime.now(dt.UTC).timestamp() * 1000)


class Client:
    """Runs jobs one after another and writes down what it sees."""

    def __init__(self, name: str, address: str, notes: Notes) -> None:
        self.name = name
        self._client = AsyncClient(address, options=OPTIONS)
        self._notes = notes
        self._jobs = 0

    async def __aenter__(self) -> "Client":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def run(self, task: Task, cancel_after: int | None = None) -> str:
        """Runs one job to its outcome; returns its text.

        With `cancel_after` it is cancelled after so many batches of output, 0: once it is accepted.
        """
        self._jobs += 1
        request_id = f"{self.name}-{self._jobs}"
        self._note(history.EnqueueSent(at_ms=now_ms(), client=self.name, request_id=request_id))
        stream = self._client.run(
            model_id=task.model_id,
            prompt=task.prompt,
            sampling=task.sampling,
            request_id=request_id,
            determinism=Determinism.REQUIRED if task.exact else Determinism.BEST_EFFORT,
            failover=task.failover,
            failures_as_events=True,
        )
        try:
            await stream.start()
        except LlamaOrchError as error:
            self._refused(request_id, error)
            return ""
        self._notes.tasks[stream.job_id] = task
        self._accepted(request_id, stream.job_id)
        try:
            return await self._follow(stream, request_id, cancel_after)
        finally:
            self._notes.following.pop(request_id, None)
            self._notes.resumes += stream.resumes

    async def served(self, task: Task) -> str:
        """Runs a task, as often as needed until a pool has loaded its model; returns the text.

        Raises:
            HarnessError: when none did.
        """
        for _ in range(TRIES_MAX):
            if text := await self.run(task):
                return text
            await asyncio.sleep(TRY_EVERY_S)
        raise HarnessError(f"no answer to {task}")

    async def ready(self, model_id: str) -> int:
        """How many pools of a model are READY."""
        pools = await self._client.pools()
        return sum(pool.model_id == model_id and pool.state == "READY" for pool in pools)

    async def _follow(self, stream: JobStream, name: str, cancel_after: int | None) -> str:
        following = self._notes.following[name] = Following(stream.job_id)
        text: list[str] = []
        cancelling: asyncio.Task[None] | None = None
        try:
            if cancel_after == 0:
                cancelling = asyncio.create_task(self._cancel(stream.job_id))
            async for event in stream:
                self._seen(name, following, event)
                if isinstance(event, Tokens):
                    text.append(event.text)
                    if len(text) == cancel_after:
                        cancelling = asyncio.create_task(self._cancel(stream.job_id))
        except LlamaOrchError as error:
            self._notes.outcomes[stream.job_id] = f"BROKEN {error.reason}: {error.message}"
            self._note(history.StreamBroken(reason=error.reason, **self._where(name, following)))
        if cancelling is not None:
            await cancelling
        return "".join(text)

    async def _cancel(self, job_id: str) -> None:
        asked_ms = now_ms()
        self._note(history.CancelSent(at_ms=asked_ms, client=self.name, job_id=job_id))
        job = await self._client.cancel(job_id)
        self._note(
            history.CancelAnswered(
                at_ms=now_ms(),
                client=self.name,
                job_id=job_id,
                state=job.state.value,
                asked_ms=asked_ms,
            )
        )

    def _seen(self, name: str, following: Following, event: Event) -> None:
        where = self._where(name, following)
        match event:
            case Started():
                following.pool_id = event.pool_id
                self._notes.restarts += event.attempt > 1
                self._note(history.Started(attempt=event.attempt, **where))
            case Resumed():
                following.pool_id = event.pool_id
                continues = event.mode is ResumeMode.CONTINUE
                self._notes.continuations += continues
                self._notes.replays += not continues
                self._note(
                    history.Resumed(
                        attempt=event.attempt,
                        mode=event.mode.value,
                        text_offset=event.text_offset,
                        **where,
                    )
                )
            case Tokens():
                self._went_on(following)
                following.running = True
                self._note(
                    history.TextDelivered(
                        attempt=event.attempt,
                        text_offset=event.text_offset,
                        text=event.text,
                        **where,
                    )
                )
            case End():
                self._ended(following, event.state.value, "")
                self._note(
                    history.Outcome(state=event.state.value, text_bytes=event.text_bytes, **where)
                )
            case Failed():
                reason = event.error.reason
                state = STATE_OF_REASON.get(reason, "FAILED")
                self._ended(following, state, reason)
                self._note(history.Outcome(state=state, reason=reason, **where))
            case _:
                pass

    def _ended(self, following: Following, state: str, reason: str) -> None:
        self._went_on(following)
        following.running = False
        self._notes.outcomes[following.job_id] = f"{state} {reason}".strip()

    def _went_on(self, following: Following) -> None:
        following.owed = False
        if following.broken_ms is not None:
            span_ms = now_ms() - following.broken_ms
            self._notes.resume_ms.append(span_ms)
            if following.hits == 1:
                self._notes.resume_once_ms.append(span_ms)
            following.broken_ms, following.hits = None, 0

    def _accepted(self, request_id: str, job_id: str) -> None:
        self._note(
            history.EnqueueAcked(
                at_ms=now_ms(), client=self.name, request_id=request_id, job_id=job_id
            )
        )
        self._note(
            history.StreamOpened(at_ms=now_ms(), client=self.name, stream=request_id, job_id=job_id)
        )

    def _refused(self, request_id: str, error: LlamaOrchError) -> None:
        self._notes.outcomes[request_id] = f"REFUSED {error.reason}: {error.message}"
        self._note(
            history.EnqueueRefused(
                at_ms=now_ms(), client=self.name, request_id=request_id, reason=error.reason
            )
        )

    def _where(self, name: str, following: Following) -> dict[str, Any]:
        return {
            "at_ms": now_ms(),
            "client": self.name,
            "stream": name,
            "job_id": following.job_id,
        }

    def _note(self, event: history.AnyEvent) -> None:
        self._notes.events.append(event)
