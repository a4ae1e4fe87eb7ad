"""What one scenario knows: its service, and what its clients asked for, were told and saw."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llamaorch_client import (
    AsyncClient,
    End,
    Event,
    Failed,
    Job,
    JobRequest,
    LlamaOrchError,
    Receipt,
    ResumePoint,
    Tokens,
)
from tests.features.processes import ProcessService
from tests.features.service import WAIT_S, Service

T = TypeVar("T")


class Reader:
    """Somebody who follows a job and writes down every event."""

    def __init__(self, client: AsyncClient, job_id: str, resume: ResumePoint | None = None) -> None:
        self.events: list[Event] = []
        self.refusal: LlamaOrchError | None = None
        self._news = asyncio.Condition()
        self._stream = client.stream(job_id, resume, failures_as_events=True)
        self._task = asyncio.create_task(self._read())
        self._over = False

    @property
    def text(self) -> str:
        """All output so far."""
        return "".join(event.text for event in self.events if isinstance(event, Tokens))

    @property
    def attempt(self) -> int:
        """The attempt of the last output."""
        return self._stream.attempt

    @property
    def outcome(self) -> str:
        """The last word: FINISHED, CANCELLED, or the reason of an error; empty before."""
        match self.events[-1] if self.events else None:
            case End(state=state):
                return state.value
            case Failed(error=error):
                return error.reason
        return ""

    async def until(self, seen: Callable[[], bool]) -> None:
        """Waits until what was seen satisfies a condition.

        Raises:
            AssertionError: when the stream ends without it, or it does not come in time.
        """
        try:
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: seen() or self._over)
        except TimeoutError:
            raise AssertionError(f"it never came; seen so far: {self.events}") from None
        assert seen(), f"the stream ended without it: {self.events}, {self.refusal}"

    async def ended(self) -> str:
        """Waits for the end and returns the outcome."""
        await self.until(lambda: self.outcome != "" or self.refusal is not None)
        await self._task
        return self.outcome

    async def leave(self) -> None:
        """Stops reading."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._stream.aclose()

    async def _read(self) -> None:
        try:
            async for event in self._stream:
                async with self._news:
                    self.events.append(event)
                    self._news.notify_all()
        except LlamaOrchError as error:
            self.refusal = error
        finally:
            self._over = True
            async with self._news:
                self._news.notify_all()


@dataclass
class Asked:
    """One job that somebody asked for."""

    request: JobRequest
    client: AsyncClient
    receipt: Receipt | None = None
    refusal: LlamaOrchError | None = None
    answers: list[Receipt] = field(default_factory=list)
    reader: Reader | None = None
    before: str = ""

    @property
    def job_id(self) -> str:
        """Its id, once accepted."""
        assert self.receipt is not None, f"it was refused: {self.refusal}"
        return self.receipt.job_id

    def follow(self) -> Reader:
        """Its first reader, who begins at the first word."""
        if self.reader is None:
            self.reader = Reader(self.client, self.job_id)
        return self.reader


class World:
    """One scenario. Steps that wait run on its event loop, and so does everything else."""

    def __init__(
        self, directory: Path, runner: asyncio.Runner, logs: list[MutableMapping[str, Any]]
    ) -> None:
        self.directory = directory
        self.service = Service(directory)
        self.jobs: dict[str, Asked] = {}
        self.readers: dict[str, Reader] = {}
        self.refusal: LlamaOrchError | None = None
        self.answer: Any = None
        self.notes: dict[str, Any] = {}
        self.logs = logs
        self._runner = runner
        self._at_end: list[Callable[[], Awaitable[object]]] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carries work out; what takes too long fails."""

        async def bounded() -> T:
            async with asyncio.timeout(2 * WAIT_S):
                return await work

        return self._runner.run(bounded())

    def logged(self) -> str:
        """All that the services of this process have logged, in one text."""
        return "\n".join(str(entry) for entry in self.logs)

    def at_end(self, work: Callable[[], Awaitable[object]]) -> None:
        """Has something closed when the scenario is over."""
        self._at_end.append(work)

    async def as_processes(self) -> None:
        """Has the services run as processes of their own."""
        self.service = ProcessService(self.directory)

    async def client(self, name: str = "") -> AsyncClient:
        """Somebody's client."""
        return await self.service.client(name)

    async def ask(self, name: str, request: JobRequest, who: str = "") -> Asked:
        """Sends a job once, whatever the answer."""
        asked = self.jobs.get(name) or Asked(request, await self.client(who))
        asked.request, asked.refusal, self.refusal = request, None, None
        self.jobs[name] = asked
        try:
            receipt = await asked.client.enqueue(request)
            asked.answers.append(receipt)
            asked.receipt = asked.receipt or receipt
        except LlamaOrchError as error:
            asked.refusal = self.refusal = error
        return asked

    async def attempt(self, call: Awaitable[T]) -> T | None:
        """Makes a call that may be refused; the answer or the refusal is kept."""
        self.answer = self.refusal = None
        try:
            self.answer = await call
        except LlamaOrchError as error:
            self.refusal = error
        return self.answer

    async def look_up(self, name: str) -> Job:
        """What the service says of a job."""
        asked = self.jobs[name]
        return await asked.client.get_job(asked.job_id)

    async def close(self) -> None:
        """Ends what the scenario left open."""
        for asked in self.jobs.values():
            if asked.reader is not None:
                await asked.reader.leave()
        for reader in self.readers.values():
            await reader.leave()
        for work in reversed(self._at_end):
            await work()
        await self.service.close()
