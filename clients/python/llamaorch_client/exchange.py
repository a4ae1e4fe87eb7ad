# SPDX-License-Identifier: Apache-2.0
"""Many jobs on one stream, through any break (LO-306).

One task keeps the stream open. What is not answered yet is asked again on the next stream: an
enqueue carries a request_id, the rest may be repeated as it is. Every open job is followed again
from what was received of it.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc
from opentelemetry.context import Context

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch_client import tracing, wire, wire_request
from llamaorch_client.errors import (
    ErrorDetail,
    LlamaOrchError,
    UnavailableError,
    check_size,
    error_of,
    from_rpc_error,
    lost_while_writing,
)
from llamaorch_client.events import ResumePoint
from llamaorch_client.exchange_job import ExchangeJob, closed_detail
from llamaorch_client.exchange_link import Asked, Followed, Link
from llamaorch_client.metadata import call_metadata, checked_correlation_id
from llamaorch_client.model import Job, Receipt
from llamaorch_client.request import JobFields, JobRequest, job_request
from llamaorch_client.retry import RetryRow
from llamaorch_client.transport import Transport

if TYPE_CHECKING:
    from grpc import aio

    Call = aio.StreamStreamCall[pb.ExchangeRequest, pb.ExchangeResponse]


class Exchange:
    """One stream with many jobs; `AsyncClient.exchange` makes it, use it as a context manager.

    All methods may be called at the same time. They raise `LlamaOrchError` or one of its
    subclasses, and try again within `ClientOptions.retry` and `.stream.retry` where that is safe.
    Leaving the context stops following; jobs run on.
    """

    def __init__(self, transport: Transport, correlation_id: str | None = None) -> None:
        self._transport = transport
        self._options = transport.options
        self._correlation_id = checked_correlation_id(correlation_id)
        self._open: dict[ExchangeJob, None] = {}
        self._work = asyncio.Event()
        acknowledge = self._options.exchange.acknowledge
        self._session = Followed(
            self._open, self._work, self._follow_again, self._correlation_id, acknowledge
        )
        self._link = Link(self._session)
        self._next_id = 1
        self._row = RetryRow(self._options.stream.retry, self._options.timing)
        self._runner: asyncio.Task[None] | None = None
        self._resumes = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run(), name="exchange")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def resumes(self) -> int:
        """How often the stream was opened again after a break."""
        return self._resumes

    async def close(self) -> None:
        """Sends the acknowledgements that are due, then ends the stream. Closing twice is fine."""
        try:
            await self._acknowledge()
        finally:
            # Also where the wait is cancelled: nobody else would end the task.
            self._closed = True
            if self._runner is not None:
                self._runner.cancel()
                await asyncio.gather(self._runner, return_exceptions=True)
            self._fail_all(UnavailableError(closed_detail()))

    async def _acknowledge(self) -> None:
        ack = None if self._closed else self._link.take_ack()
        if ack is not None:
            with suppress(LlamaOrchError, TimeoutError):
                async with asyncio.timeout(self._options.stream.close_wait_ms / 1000):
                    await self._ask(pb.ExchangeRequest(ack=ack))

    # --- what a caller asks for

    async def enqueue(
        self, request: JobRequest | None = None, **fields: Unpack[JobFields]
    ) -> Receipt:
        """Gives a job and returns once the server has made it durable; see `AsyncClient.enqueue`.

        Raises:
            RejectedError: the server will not queue the job now. InvalidParamsError: `violations`
            names each bad field. ValueError: the request is not complete; nothing was sent.
        """
        return await self._enqueue(job_request(request, fields), None)

    async def run(
        self,
        request: JobRequest | None = None,
        *,
        failures_as_events: bool = False,
        **fields: Unpack[JobFields],
    ) -> ExchangeJob:
        """Gives a job and follows it; returns once it is accepted. Raises as `enqueue`."""
        given = job_request(request, fields)
        credit_bytes = self._options.exchange.credit_bytes
        job = ExchangeJob("", credit_bytes, self._read_on, failures_as_events=failures_as_events)
        async with _kept(job):
            job.receipt = await self._enqueue(given, job)
        return job

    async def subscribe(
        self,
        job_id: str,
        resume_from: ResumePoint | None = None,
        *,
        observer: bool = False,
        failures_as_events: bool = False,
    ) -> ExchangeJob:
        """Follows a job from the beginning or from `resume_from`.

        Raises:
            NotFoundError, ResumeWindowError.
        """
        job = ExchangeJob(
            job_id,
            self._options.exchange.credit_bytes,
            self._read_on,
            resume_from=resume_from,
            observer=observer,
            failures_as_events=failures_as_events,
        )
        async with _kept(job):
            await self._retrying(lambda: self._ask(_subscribe(job), job))
        return job

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job and returns its true state; one that ended stays as it was."""
        request = pb.ExchangeRequest(cancel=pb.ExchangeCancel(job_id=job_id))
        result = await self._retrying(lambda: self._ask(request))
        return wire.job(result.cancelled.job)

    # --- requests

    async def _enqueue(self, given: JobRequest, job: ExchangeJob | None) -> Receipt:
        request_id = given.request_id or uuid.uuid4().hex
        asked = pb.ExchangeEnqueue(
            spec=wire_request.job_spec(given, request_id), subscribe=job is not None
        )
        provider = self._options.tracer_provider
        with tracing.client_span(provider, tracing.ENQUEUE_SPAN, "Exchange", None) as (span, trace):
            span.set_attributes(tracing.asked(given, request_id))
            if job is not None:
                asked.credit_bytes = job.initial_credit()
            parent = _traceparent(trace)
            result = await self._retrying(
                lambda: self._ask(pb.ExchangeRequest(enqueue=asked, traceparent=parent), job)
            )
            span.set_attribute(tracing.JOB_ID, result.enqueued.job_id)
        return wire.receipt(result.enqueued, request_id, self._correlation_id)

    async def _retrying(self, ask: Callable[[], Awaitable[pb.ExchangeResult]]) -> pb.ExchangeResult:
        row = RetryRow(self._options.retry, self._options.timing)
        while True:
            try:
                return await ask()
            except LlamaOrchError as error:
                delay_ms = row.next_delay_ms(error)
                error.attempts = row.failures
                if delay_ms is None or self._closed:
                    raise
            await self._options.timing.sleep_ms(delay_ms)

    async def _ask(
        self, request: pb.ExchangeRequest, job: ExchangeJob | None = None
    ) -> pb.ExchangeResult:
        """Sends a request, on as many streams as it takes, and returns its result."""
        if self._runner is None or self._closed:
            raise RuntimeError("this exchange is not open: use `async with client.exchange()`")
        # gRPC would end the stream for it, and all other jobs with it.
        check_size(request.ByteSize())
        answer = asyncio.get_running_loop().create_future()
        self._link.waiting.append(Asked(self._numbered(request), answer, job))
        self._work.set()
        try:
            async with asyncio.timeout(self._options.rpc_timeout_ms / 1000):
                result: pb.ExchangeResult = await answer
        except TimeoutError:
            raise UnavailableError(self._detail("NO_ANSWER", "the server did not answer")) from None
        return result

    def _numbered(self, request: pb.ExchangeRequest) -> pb.ExchangeRequest:
        request.correlation_id = self._next_id
        self._next_id += 1
        return request

    def _read_on(self, job: ExchangeJob) -> None:
        self._link.touch(job)

    # --- the stream

    async def _run(self) -> None:
        """Keeps a stream open while there is something to do on it."""
        now_ms = self._options.timing.now_ms
        try:
            while True:
                while not (self._link.waiting or self._open):
                    self._work.clear()
                    await self._work.wait()
                opened_ms = now_ms()
                broken = await self._converse()
                # Jobs may be silent for hours while the stream is fine.
                self._row.exclude(now_ms() - opened_ms)
                self._relink()
                await self._pause(broken)
        except BaseException as error:
            # Nobody answers any more, so nobody may be left waiting.
            self._closed = True
            closed = self._transport.closed or isinstance(error, asyncio.CancelledError)
            told = closed_detail() if closed else None
            self._fail_all(UnavailableError(told or self._detail("CLIENT_BROKE", repr(error))))
            raise

    async def _pause(self, broken: LlamaOrchError | None) -> None:
        delay_ms = self._row.next_delay_ms(broken)
        self._resumes += 1
        if delay_ms is None or self._resumes > self._options.stream.resumes_max:
            text = "the server keeps closing the stream"
            self._fail_all(broken or UnavailableError(self._detail("STREAM_CLOSED", text)))
            self._row.reset()
        else:
            await self._options.timing.sleep_ms(delay_ms)

    async def _converse(self) -> LlamaOrchError | None:
        """Reads and writes one stream to its end; returns why it broke, if that is known."""
        call = self._transport.open_exchange(self._correlation_id)
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            # A write fails without saying why; the reader will know in a moment.
            await asyncio.wait((reader,), timeout=self._options.stream.close_wait_ms / 1000)
        finally:
            call.cancel()
            for task in (reader, writer):
                task.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, grpc.aio.AioRpcError):
                return (
                    None
                    if lost_while_writing(result)
                    else from_rpc_error(result, self._correlation_id, self._transport.target)
                )
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.InvalidStateError):
                raise result
        return None

    async def _write(self, call: "Call") -> None:
        """The only writer of a stream."""
        link = self._link
        while True:
            self._work.clear()
            while link.waiting and len(link.asked) < self._options.exchange.requests_max:
                asked = link.waiting.popleft()
                if not asked.dropped:
                    link.asked[asked.request.correlation_id] = asked
                    await call.write(asked.request)
            while link.left:
                unsubscribe = pb.ExchangeUnsubscribe(handle=link.left.pop())
                await call.write(pb.ExchangeRequest(unsubscribe=unsubscribe))
            if (ack := link.take_ack()) is not None:
                await call.write(pb.ExchangeRequest(ack=ack))
            if not (link.left or link.has_acks):
                await self._work.wait()

    async def _read(self, call: "Call") -> None:
        async for message in call:
            self._row.reset()
            self._link.take(message)

    # --- from one stream to the next

    def _relink(self) -> None:
        """What was not answered is asked again, and every open job is followed again."""
        unanswered = self._link.end()
        self._link = Link(self._session)
        self._link.waiting.extend(unanswered)
        for job in self._open:
            self._follow_again(job, self._link)

    def _follow_again(self, job: ExchangeJob, link: Link) -> None:
        if link is self._link and not job.over:
            job.resumes += 1
            link.waiting.append(Asked(self._numbered(_subscribe(job)), None, job))
            self._work.set()

    def _fail_all(self, error: LlamaOrchError) -> None:
        """Tells everybody who waits; each gets an error of its own."""
        unanswered = self._link.end()
        self._link = Link(self._session)
        for asked in unanswered:
            if asked.answer is not None and not asked.answer.done():
                asked.answer.set_exception(_same(error))
        for job in self._open:
            job.fail(_same(error))
        self._open.clear()

    def _detail(self, reason: str, message: str) -> ErrorDetail:
        return ErrorDetail(
            message=message,
            reason=reason,
            code="UNAVAILABLE",
            correlation_id=self._correlation_id,
        )


@asynccontextmanager
async def _kept(job: ExchangeJob) -> AsyncIterator[None]:
    """Leaves a job that its caller will never have: its answer may have come all the same."""
    try:
        yield
    except BaseException:
        await job.aclose()
        raise


def _same(error: LlamaOrchError) -> LlamaOrchError:
    told = error_of(error.detail)
    told.__cause__ = error.__cause__
    return told


def _subscribe(job: ExchangeJob) -> pb.ExchangeRequest:
    asked = pb.ExchangeSubscribe(
        job_id=job.job_id,
        resume_from=job.resume_point(),
        observer=job.observer,
        credit_bytes=job.initial_credit(),
    )
    return pb.ExchangeRequest(subscribe=asked)


def _traceparent(context: Context) -> str:
    return dict(call_metadata("-", None, context)).get("traceparent", "")
