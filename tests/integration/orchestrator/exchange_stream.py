"""One raw Exchange stream: requests by hand, what comes back by correlation id and handle."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

import grpc

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from tests.integration.orchestrator.calls import spec
from tests.integration.orchestrator.conftest import Orchestrator

WAIT_S = 20.0


class Stream:
    """Reads all the time, unless `reading` is off; keeps the order of each job's events."""

    def __init__(self, orchestrator: Orchestrator, *, reading: bool = True) -> None:
        self.call = orchestrator.jobs.Exchange()
        self.results: dict[int, list[pb.ExchangeResult]] = defaultdict(list)
        self.events: dict[int, list[events_pb2.JobEvent]] = defaultdict(list)
        self.broken: dict[int, pb.ExchangeBroken] = {}
        self.messages = 0
        self.error: grpc.aio.AioRpcError | None = None
        self._news = asyncio.Condition()
        self._next_id = 1
        self._reader = asyncio.create_task(self._read()) if reading else None

    async def send(self, correlation_id: int | None = None, **request: object) -> int:
        """Sends one request; returns its correlation id."""
        if correlation_id is None:
            correlation_id = self._next_id
            self._next_id += 1
        message = pb.ExchangeRequest(correlation_id=correlation_id, **request)  # type: ignore[arg-type]
        await self.call.write(message)
        return correlation_id

    async def ask(self, **request: object) -> pb.ExchangeResult:
        """Sends one request and returns its result."""
        return await self.result(await self.send(**request))

    async def result(self, correlation_id: int) -> pb.ExchangeResult:
        """The one result of a request."""
        await self.until(lambda: bool(self.results[correlation_id]))
        (result,) = self.results[correlation_id]
        return result

    async def enqueue(self, credit_bytes: int | None = None, **fields: object) -> pb.ExchangeResult:
        """Gives a job and follows it."""
        asked = pb.ExchangeEnqueue(spec=spec(**fields), subscribe=True, credit_bytes=credit_bytes)
        return await self.ask(enqueue=asked)

    async def ack(self, **columns: Iterable[int]) -> pb.ExchangeResult:
        """Acknowledges and returns the result."""
        return await self.ask(ack=pb.ExchangeAck(**columns))  # type: ignore[arg-type]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits until something is so; checked at each message."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(true)

    async def text_bytes(self, handle: int, least: int) -> None:
        """Waits until so much output of a job is here."""
        await self.until(lambda: len(self.text(handle).encode()) >= least)

    async def ended(self, *handles: int) -> None:
        """Waits until the outcomes of jobs are here."""
        await self.until(lambda: all(self.outcomes(handle) for handle in handles))

    def text(self, handle: int) -> str:
        """Output of a job so far."""
        return "".join(piece for event in self.events[handle] for piece in event.tokens.pieces)

    def outcomes(self, handle: int) -> list[events_pb2.JobEvent]:
        """Outcomes of a job so far."""
        known = self.events.get(handle, [])
        return [event for event in known if event.WhichOneof("event") in {"end", "error"}]

    def kinds(self, handle: int) -> list[str | None]:
        """Names of a job's events, without those that come by the clock."""
        names = [event.WhichOneof("event") for event in self.events[handle]]
        return [name for name in names if name not in {"queued", "metrics"}]

    async def close(self) -> grpc.StatusCode:
        """Closes this side, reads to the end and returns the status."""
        await self.call.done_writing()
        if self._reader is not None:
            await asyncio.wait_for(self._reader, WAIT_S)
        return await self.call.code()

    async def cut(self) -> None:
        """Breaks the stream as a lost connection would."""
        self.call.cancel()
        if self._reader is not None:
            await asyncio.wait((self._reader,))

    async def _read(self) -> None:
        try:
            async for message in self.call:
                self.messages += 1
                async with self._news:
                    self.take(message)
                    self._news.notify_all()
        except grpc.aio.AioRpcError as error:
            self.error = error

    def take(self, message: pb.ExchangeResponse) -> None:
        """Applies one message in the order that the contract says."""
        for result in message.results:
            self.results[result.correlation_id].append(result)
        for begun in message.begun:
            self.events[begun.handle].append(begun.event)
        tokens = message.tokens
        columns = zip(tokens.handles, tokens.first_indexes, tokens.chunks, strict=True)
        for handle, first_index, chunk in columns:
            batch = events_pb2.TokenBatch.FromString(chunk)
            assert batch.first_index == first_index
            self.events[handle].append(events_pb2.JobEvent(tokens=batch))
        for event in message.events:
            assert event.event.WhichOneof("event") != "tokens"
            self.events[event.handle].append(event.event)
        for broken in message.broken:
            self.broken[broken.handle] = broken


def cancelled_state(result: pb.ExchangeResult) -> "job_pb2.JobState.ValueType":
    """State that a cancel answered."""
    return result.cancelled.job.state
