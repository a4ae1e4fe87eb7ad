# SPDX-License-Identifier: Apache-2.0
"""Follows one job to its outcome over as many calls as it takes (LO-301)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import grpc
from opentelemetry.context import Context

from llamaorch.orchestrator.v1 import orchestrator_service_pb2
from llamaorch_client import tracing
from llamaorch_client.errors import (
    ErrorDetail,
    JobFailedError,
    LlamaOrchError,
    UnavailableError,
    from_rpc_error,
)
from llamaorch_client.events import End, Event, Failed, Result, ResumePoint, Tokens
from llamaorch_client.metadata import checked_correlation_id
from llamaorch_client.model import Receipt
from llamaorch_client.reader import OutputReader
from llamaorch_client.retry import RetryRow
from llamaorch_client.transport import Transport

if TYPE_CHECKING:
    from grpc import aio

    from llamaorch.orchestrator.v1.orchestrator_service_pb2 import (
        StreamTokensRequest,
        StreamTokensResponse,
    )

    TokenCall = aio.UnaryStreamCall[StreamTokensRequest, StreamTokensResponse]


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What to follow and how. `failures_as_events` yields `Failed` instead of raising."""

    resume_from: ResumePoint | None = None
    observer: bool = False
    failures_as_events: bool = False
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The job that a stream follows: its id, and for a job given just now its receipt and trace."""

    job_id: str
    receipt: Receipt | None = None
    context: Context | None = None


class Followed(Protocol):
    """A job whose events can be iterated."""

    @property
    def job_id(self) -> str:
        """Id of the job."""
        ...

    @property
    def receipt(self) -> Receipt | None:
        """Its receipt, where it was given just now."""
        ...

    def __aiter__(self) -> AsyncIterator[Event]:
        """Its events."""
        ...


async def read_result(job: Followed, texts: list[str]) -> Result:
    """Reads a job to its end; `texts` are what was known already, and what is read is added.

    Raises as `JobStream.result`.
    """
    end: End | None = None
    async for event in job:
        match event:
            case Tokens():
                texts.append(event.text)
            case End():
                end = event
            case Failed():
                raise JobFailedError(event.error, job.job_id)
            case _:
                pass
    if end is None:
        raise RuntimeError("this stream was already read to its end or closed")
    text = "".join(texts)
    if len(text.encode()) != end.text_bytes:
        raise RuntimeError("a part of the output was read from this stream before its `result`")
    return Result(text, end, job.receipt)


class JobStream(AsyncIterator[Event]):
    """The events of one job. Iterate it, or take `await stream.result()`.

    Leaving the iteration early detaches: the job runs on. `aclose`, or `async with`, detaches at
    once. An iteration that was cancelled, as by a timeout, or that found no server, can go on:
    nothing is lost or repeated.
    """

    def __init__(
        self, transport: Transport, plan: StreamPlan, start: Callable[[], Awaitable[Origin]]
    ) -> None:
        self._transport = transport
        self._plan = plan
        self._start = start
        self._origin: Origin | None = None
        self._correlation_id = checked_correlation_id(plan.correlation_id)
        self._reader = OutputReader(plan.resume_from)
        self._row = RetryRow(transport.options.stream.retry, transport.options.timing)
        self._resumes = 0
        self._texts = [plan.resume_from.text if plan.resume_from is not None else ""]
        self._starting = asyncio.Lock()
        self._closed = False
        self._reading: asyncio.Task[Any] | None = None
        self._events = self._run()

    @property
    def job_id(self) -> str:
        """Id of the job; empty until a job given with `run` is accepted."""
        return self._origin.job_id if self._origin is not None else ""

    @property
    def receipt(self) -> Receipt | None:
        """Receipt of a job given with `run`, once accepted."""
        return self._origin.receipt if self._origin is not None else None

    @property
    def attempt(self) -> int:
        """Attempt of the last output; with the text so far it makes a `ResumePoint`."""
        return self._reader.attempt

    @property
    def text_offset(self) -> int:
        """UTF-8 bytes of verified output so far."""
        return self._reader.text_offset

    @property
    def resumes(self) -> int:
        """How often the stream was resumed after a break."""
        return self._resumes

    async def start(self) -> Receipt | None:
        """Gives the job if `run` made this stream and nothing was read yet; returns the receipt."""
        async with self._starting:
            if self._origin is None:
                self._origin = await self._start()
            return self._origin.receipt

    async def result(self) -> Result:
        """Reads to the end and returns the whole text.

        Raises:
            JobFailedError: the job failed, expired or was dropped.
            LlamaOrchError: the stream could not be followed to its end.
            RuntimeError: the stream was already read, also in part, or closed.
        """
        return await read_result(self, self._texts)

    async def aclose(self) -> None:
        """Stops following; the job runs on. For who is reading elsewhere the iteration ends."""
        self._closed = True
        if self._reading is None:
            await self._events.aclose()
        else:
            self._reading.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _is_closed(self) -> bool:
        """By now: another task may have closed it during a wait."""
        return self._closed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._reading is not None:
            raise RuntimeError("this stream is being read already")
        if self._closed:
            raise StopAsyncIteration
        self._reading = task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            return await anext(self._events)
        except asyncio.CancelledError:
            left = self._is_closed()
            self._closed = left or self._reader.ended
            self._events = self._run()
            if left and task is not None and task.uncancel() <= cancelled_before:
                raise StopAsyncIteration from None
            raise
        except UnavailableError:
            # What was received is known: the next one goes on from there.
            self._events = self._run()
            raise
        except BaseException:
            self._closed = True
            raise
        finally:
            self._reading = None

    async def _run(self) -> AsyncGenerator[Event, None]:
        await self.start()
        assert self._origin is not None
        provider = self._transport.options.tracer_provider
        with tracing.client_span(
            provider, tracing.STREAM_SPAN, "StreamTokens", self._origin.context
        ) as (span, context):
            span.set_attribute(tracing.JOB_ID, self._origin.job_id)
            try:
                async with aclosing(self._follow(context)) as events:
                    async for event in events:
                        if isinstance(event, End):
                            span.set_attributes(tracing.told(event))
                        yield event
            finally:
                span.set_attribute(tracing.TEXT_BYTES, self._reader.text_offset)
                span.set_attribute(tracing.RESUMES, self._resumes)

    async def _follow(self, context: Context) -> AsyncGenerator[Event, None]:
        now_ms = self._transport.options.timing.now_ms
        self._row.reset()
        while True:
            opened_ms = now_ms()
            with self._transport.in_use():
                call = self._open(context)
            broken: LlamaOrchError | None = None
            try:
                async with aclosing(self._read(call)) as events:
                    async for event in events:
                        self._row.reset()
                        yield self._checked(event)
                if self._reader.ended:
                    await self._expect_close(call)
                    return
            except grpc.aio.AioRpcError as error:
                broken = from_rpc_error(error, self._correlation_id, self._transport.target)
            finally:
                call.cancel()
            # A job may be silent for hours while its stream is fine: only being without one counts.
            self._row.exclude(now_ms() - opened_ms)
            await self._pause(broken)

    async def _read(self, call: "TokenCall") -> AsyncGenerator[Event, None]:
        with self._transport.in_use():
            async for message in call:
                for raw in message.events:
                    event = self._reader.accept(raw)
                    if event is not None:
                        yield event
                if self._reader.ended:
                    return

    async def _expect_close(self, call: "TokenCall") -> None:
        # The outcome is known, so a server that is slow to close costs a bounded wait and nothing
        # else.
        wait_s = self._transport.options.stream.close_wait_ms / 1000
        try:
            async with asyncio.timeout(wait_s):
                with self._transport.in_use():
                    async for message in call:
                        for raw in message.events:
                            self._reader.accept(raw)
        except (TimeoutError, grpc.aio.AioRpcError, RuntimeError):
            return

    def _open(self, context: Context) -> "TokenCall":
        request = orchestrator_service_pb2.StreamTokensRequest(
            job_id=self.job_id,
            resume_from=self._reader.resume_point(),
            observer=self._plan.observer,
        )
        return self._transport.open_stream(request, self._correlation_id, context)

    def _checked(self, event: Event) -> Event:
        if isinstance(event, Failed) and not self._plan.failures_as_events:
            raise JobFailedError(event.error, self.job_id)
        return event

    async def _pause(self, broken: LlamaOrchError | None) -> None:
        delay_ms = self._row.next_delay_ms(broken)
        self._resumes += 1
        if delay_ms is None or self._resumes > self._transport.options.stream.resumes_max:
            raise self._given_up(broken)
        await self._transport.options.timing.sleep_ms(delay_ms)

    def _given_up(self, broken: LlamaOrchError | None) -> LlamaOrchError:
        if broken is None:
            broken = UnavailableError(
                ErrorDetail(
                    message="the server keeps closing the stream before the job's outcome",
                    reason="STREAM_CLOSED",
                    code="UNAVAILABLE",
                    correlation_id=self._correlation_id,
                )
            )
        broken.attempts = self._row.failures
        return broken
