# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client: its connection, and calls about jobs and sessions."""

import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, Unpack

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from llamaorch.orchestrator.v1 import orchestrator_service_pb2, session_service_pb2
from llamaorch_client import tracing, wire, wire_request
from llamaorch_client.aio_fleet import FleetCalls
from llamaorch_client.artifacts import Artifacts
from llamaorch_client.catalog import AsyncCatalog
from llamaorch_client.events import ResumePoint
from llamaorch_client.exchange import Exchange
from llamaorch_client.model import Explanation, Job, JobState, Receipt, Session
from llamaorch_client.options import ClientOptions
from llamaorch_client.pages import PAGE_SIZE, Pages
from llamaorch_client.request import JobFields, JobRequest, job_request, refuse_text
from llamaorch_client.stream import JobStream, Origin, StreamPlan
from llamaorch_client.transport import Transport


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list: in one of `states`, of `session_id`; empty does not restrict.

    `id_part` is how their ids begin or end. A server that does not know of it lists all.
    """

    states: Sequence[JobState] = ()
    session_id: str = ""
    id_part: str = ""

    def __post_init__(self) -> None:
        refuse_text(self, "states")


class AsyncClient(FleetCalls):
    """A client of one orchestrator; use it as an async context manager.

    Every method takes `correlation_id` (one is made when absent) under which the server logs the
    call (HME-030), and raises `LlamaOrchError` or one of its subclasses. Calls are repeated within
    `ClientOptions.retry` where that is safe. `artifacts` puts, gets and lists stored content.
    """

    def __init__(self, target: str, *, options: ClientOptions | None = None) -> None:
        self._target = target
        self._options = options if options is not None else ClientOptions()
        self._transport: Transport | None = None
        self.artifacts = Artifacts(self._open)

    async def __aenter__(self) -> Self:
        if self._transport is not None:
            raise RuntimeError("this client is already open")
        self._transport = Transport(self._target, self._options)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def catalog(self) -> AsyncCatalog:
        """The catalog of models (ORCH-3031)."""
        return AsyncCatalog(self._open)

    @property
    def target(self) -> str:
        """Address of the server."""
        return self._target

    async def close(self) -> None:
        """Closes the connection; streams of this client end, jobs run on. Closing twice is fine."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def enqueue(
        self,
        request: JobRequest | None = None,
        *,
        correlation_id: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Receipt:
        """Gives a job and returns once the server has made it durable.

        All attempts carry the same request_id, so the job can only be accepted once (ORCH-3024). A
        rejection that says when to retry is retried then (ORCH-2007).

        Raises:
            RejectedError: the server will not queue the job now; `retry_after_ms` says when to try
            again. InvalidParamsError: `violations` names each bad field.
            ValueError: the request is not complete; nothing was sent.
        """
        job = job_request(request, fields)
        receipt, _ = await self._enqueue(job, correlation_id, None)
        return receipt

    def stream(
        self,
        job_id: str,
        resume_from: ResumePoint | None = None,
        observer: bool = False,
        *,
        failures_as_events: bool = False,
        correlation_id: str | None = None,
    ) -> JobStream:
        """Follows a job from the beginning or from `resume_from` to its outcome (LO-301).

        An observer does not keep a job alive that is to be cancelled when nobody listens (LO-303).
        Iterating raises `JobFailedError` when the job fails, unless `failures_as_events`.
        """
        plan = StreamPlan(resume_from, observer, failures_as_events, correlation_id)

        async def start() -> Origin:
            return Origin(job_id)

        return JobStream(self._open(), plan, start)

    def run(
        self,
        request: JobRequest | None = None,
        *,
        failures_as_events: bool = False,
        correlation_id: str | None = None,
        **fields: Unpack[JobFields],
    ) -> JobStream:
        """Gives a job and follows it: `enqueue` and `stream` in one, in one trace.

        The job is given when the first event is asked for. Leaving the iteration early does not
        cancel it.
        """
        job = job_request(request, fields)
        # One id, so that a start which is cancelled and made again gives no second job.
        job = replace(job, request_id=job.request_id or uuid.uuid4().hex)
        plan = StreamPlan(None, False, failures_as_events, correlation_id)

        async def start() -> Origin:
            # Under a span of the caller both spans are its children; else the enqueue's trace goes
            # on.
            outer = otel_context.get_current()
            receipt, inner = await self._enqueue(job, correlation_id, outer)
            nested = trace.get_current_span(outer).get_span_context().is_valid
            return Origin(receipt.job_id, receipt, outer if nested else inner)

        return JobStream(self._open(), plan, start)

    def exchange(self, *, correlation_id: str | None = None) -> Exchange:
        """Many jobs on one stream: `async with client.exchange() as exchange` (LO-306)."""
        return Exchange(self._open(), correlation_id)

    async def cancel(self, job_id: str, *, correlation_id: str | None = None) -> Job:
        """Cancels a job and returns its true state; one that ended stays as it was (ORCH-3026)."""
        transport = self._open()
        request = orchestrator_service_pb2.CancelRequest(job_id=job_id)
        answer = await transport.unary(
            transport.jobs.Cancel, request, correlation_id=correlation_id
        )
        return wire.job(answer.message.job)

    async def get_job(self, job_id: str, *, correlation_id: str | None = None) -> Job:
        """Returns one job."""
        transport = self._open()
        request = orchestrator_service_pb2.GetJobRequest(job_id=job_id)
        answer = await transport.unary(
            transport.jobs.GetJob, request, correlation_id=correlation_id
        )
        return wire.job(answer.message.job)

    async def list_jobs(
        self,
        where: JobFilter | None = None,
        *,
        limit: int | None = None,
        page_size: int = PAGE_SIZE,
        correlation_id: str | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Yields jobs, newest first, page by page as they are asked for.

        `limit` bounds the jobs; None lists all.
        """
        where = where if where is not None else JobFilter()
        left = limit if limit is not None else sys.maxsize
        pages = Pages("jobs")
        while pages.more:
            page = await self._page(where, pages.token, min(page_size, left), correlation_id)
            for message in page.jobs[:left]:
                yield wire.job(message)
            left -= len(page.jobs)
            if left <= 0:
                return
            pages.turn(page.next_page_token)

    async def list_sessions(
        self, *, page_size: int = PAGE_SIZE, correlation_id: str | None = None
    ) -> AsyncGenerator[Session, None]:
        """Yields the caller's sessions by id, page by page as they are asked for (ORCH-3021)."""
        transport, pages = self._open(), Pages("sessions")
        while pages.more:
            request = session_service_pb2.ListSessionsRequest(
                page_size=page_size, page_token=pages.token
            )
            answer = await transport.unary(
                transport.sessions.ListSessions, request, correlation_id=correlation_id
            )
            for message in answer.message.sessions:
                yield wire.session(message)
            pages.turn(answer.message.next_page_token)

    async def get_session(self, session_id: str, *, correlation_id: str | None = None) -> Session:
        """Returns one session: its turns, budgets and place in a cache (ORCH-3022, ORCH-3099)."""
        transport = self._open()
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        answer = await transport.unary(
            transport.sessions.GetSession, request, correlation_id=correlation_id
        )
        return wire.session(answer.message.session)

    async def delete_session(self, session_id: str, *, correlation_id: str | None = None) -> None:
        """Forgets a session: affinity, turns and budgets. Its jobs run on.

        Raises:
            NotFoundError: there is none, or an attempt whose answer was lost has deleted it.
        """
        transport = self._open()
        await transport.unary(
            transport.sessions.DeleteSession,
            session_service_pb2.DeleteSessionRequest(session_id=session_id),
            correlation_id=correlation_id,
        )

    async def explain(self, job_id: str, *, correlation_id: str | None = None) -> Explanation:
        """Returns why a job runs where it runs, or why it waits (LO-207)."""
        transport = self._open()
        request = orchestrator_service_pb2.ExplainJobRequest(job_id=job_id)
        answer = await transport.unary(
            transport.jobs.ExplainJob, request, correlation_id=correlation_id
        )
        return wire.explanation(answer.message)

    def _open(self) -> Transport:
        if self._transport is None:
            raise RuntimeError(
                "this client is not open: use `async with AsyncClient(...) as client`"
            )
        return self._transport

    async def _enqueue(
        self, job: JobRequest, correlation_id: str | None, parent: Context | None
    ) -> tuple[Receipt, Context]:
        transport = self._open()
        request_id = job.request_id or uuid.uuid4().hex
        request = orchestrator_service_pb2.EnqueueRequest(
            spec=wire_request.job_spec(job, request_id)
        )
        with tracing.client_span(
            self._options.tracer_provider, tracing.ENQUEUE_SPAN, "Enqueue", parent
        ) as (span, context):
            span.set_attributes(tracing.asked(job, request_id))
            answer = await transport.unary(
                transport.jobs.Enqueue, request, correlation_id=correlation_id, context=context
            )
            span.set_attribute(tracing.JOB_ID, answer.message.job_id)
        return wire.receipt(answer.message, request_id, answer.correlation_id), context

    async def _page(
        self, where: JobFilter, token: str, page_size: int, correlation_id: str | None
    ) -> orchestrator_service_pb2.ListJobsResponse:
        transport = self._open()
        request = orchestrator_service_pb2.ListJobsRequest(
            page_size=page_size,
            page_token=token,
            states=wire_request.job_states(where.states),
            session_id=where.session_id,
            id_part=where.id_part,
        )
        answer = await transport.unary(
            transport.jobs.ListJobs, request, correlation_id=correlation_id
        )
        return answer.message
