"""OrchestratorService: jobs in, events out."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

import grpc

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core import failpoints
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.auth.caller import caller, sees
from orchestrator_core.config.work import JobsTable
from orchestrator_core.core.effects import Receipt
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.errors import RefusalError
from orchestrator_core.recorder.explaining import Explainer
from orchestrator_core.replies import Answer
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.capabilities import ServerFacts, capabilities
from orchestrator_core.servicers.exchange import (
    JOB_ID_CHARS_MAX,
    Caller,
    Exchanges,
    Forget,
    JobCalls,
    Tell,
)
from orchestrator_core.servicers.exchange_session import invalid
from orchestrator_core.servicers.explained import explained
from orchestrator_core.servicers.follow import Audience
from orchestrator_core.servicers.ids import Ids
from orchestrator_core.servicers.job_views import job_view
from orchestrator_core.servicers.overview import overview
from orchestrator_core.servicers.ownership import check_own
from orchestrator_core.servicers.paging import fitting, foreign_token
from orchestrator_core.store.artifact import ArtifactKind
from orchestrator_core.telemetry.calls import Call, Rpc
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire.enums import JOB_STATE_TO_WIRE
from orchestrator_core.wire.jobs import SpecContext, Stale, parse_spec
from orchestrator_core.wire.limits import WireLimits
from orchestrator_core.wire.views import job_to_proto, receipt_to_proto

SERVICE = "llamaorch.orchestrator.v1.OrchestratorService"
PAGE_DEFAULT = 50
PAGE_MAX = 500
PAGE_TOKEN_CHARS = 18

_T = TypeVar("_T")


class OrchestratorServicer:
    """Translates between the wire and the runtime."""

    def __init__(
        self,
        runtime: Runtime,
        telemetry: Telemetry,
        limits: WireLimits,
        facts: ServerFacts,
        explainer: Explainer | None = None,
        artifacts: Artifacts | None = None,
    ) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self._limits = limits
        self._facts = facts
        self._explainer = explainer
        self._artifacts = artifacts
        self._ids = Ids()
        self._audience = Audience(runtime)
        calls = JobCalls(self._enqueue, self._cancel, self._give)
        self._exchanges = Exchanges(runtime, self._audience, calls)

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Enqueue": rpc.unary(self.enqueue, pb.EnqueueRequest),
                "Cancel": rpc.unary(self.cancel, pb.CancelRequest),
                "StreamTokens": rpc.server_stream(self.stream_tokens, pb.StreamTokensRequest),
                "Exchange": rpc.bidi(self._exchanges.serve, pb.ExchangeRequest, encoded=True),
                "GetJob": rpc.unary(self.get_job, pb.GetJobRequest),
                "ListJobs": rpc.unary(self.list_jobs, pb.ListJobsRequest),
                "ExplainJob": rpc.unary(self.explain_job, pb.ExplainJobRequest),
                "GetOverview": rpc.unary(self.get_overview, pb.GetOverviewRequest),
                "GetCapabilities": rpc.unary(self.get_capabilities, pb.GetCapabilitiesRequest),
            },
        )

    def reconfigure(self, jobs: JobsTable) -> None:
        """Other limits for requests that come after."""
        self._limits = replace(self._limits, input_bytes_max=jobs.input_bytes_max)
        self._facts = replace(
            self._facts,
            input_bytes_max=jobs.input_bytes_max,
            output_bytes_per_job=jobs.output_bytes_per_job,
        )

    async def enqueue(self, request: pb.EnqueueRequest, context: rpc.Context) -> pb.EnqueueResponse:
        """Accepts a job; answers only after it is durable."""
        answer = await self._enqueue(request.spec, _caller())
        failpoints.reach("reply.before")
        if failpoints.armed():
            # The stubs leave out the context, with which grpcio calls it.
            context.add_done_callback(_answered)  # type: ignore[arg-type]
        return answer

    async def cancel(self, request: pb.CancelRequest, _: rpc.Context) -> pb.CancelResponse:
        """Cancels a job; answers its true state once that is durable."""
        return await self._cancel(request.job_id, _caller())

    async def stream_tokens(self, request: pb.StreamTokensRequest, context: rpc.Context) -> None:
        """Follows a job from any point that is held."""
        resume = request.resume_from if request.HasField("resume_from") else None
        await self._audience.follow(
            request.job_id, resume, context.write, observer=request.observer
        )

    def stop(self) -> None:
        """Ends open exchanges once they have sent what is ready; the other calls end as they do."""
        self._exchanges.stop()

    async def get_job(self, request: pb.GetJobRequest, _: rpc.Context) -> pb.GetJobResponse:
        """Returns one job."""
        told = await self._durable(
            request.job_id, lambda job: job_to_proto(job_view(self._runtime, job))
        )
        return pb.GetJobResponse(job=told)

    async def list_jobs(self, request: pb.ListJobsRequest, _: rpc.Context) -> pb.ListJobsResponse:
        """Lists the jobs that its caller may see, newest first. O(retained jobs)."""
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        before = _page_start(request.page_token)
        states, part = set(request.states), request.id_part
        if len(part) > JOB_ID_CHARS_MAX:
            raise invalid("id_part", f"may have {JOB_ID_CHARS_MAX} characters")
        parts = (part, part.lower())

        def matching() -> Iterator[Job]:
            for job in sorted(self._runtime.core.jobs.values(), key=lambda j: -j.seq):
                if (
                    (before is None or job.seq < before)
                    and sees(job.spec.identity)
                    and (not states or JOB_STATE_TO_WIRE[job.state] in states)
                    and (not request.session_id or job.spec.session_id == request.session_id)
                    and (job.job_id.startswith(parts) or job.job_id.endswith(parts))
                ):
                    yield job

        while True:
            page = list(islice(matching(), size + 1))
            listed = fitting(job_to_proto(job_view(self._runtime, job)) for job in page[:size])
            over = [job for job in page if not job.live]
            await self._runtime.settled()
            if not any(job.live for job in over):
                break
        return pb.ListJobsResponse(
            jobs=[job for job in listed if job.job_id in self._runtime.core.jobs],
            next_page_token=str(page[len(listed) - 1].seq) if len(page) > len(listed) else "",
        )

    async def explain_job(
        self, request: pb.ExplainJobRequest, _: rpc.Context
    ) -> pb.ExplainJobResponse:
        """Tells why a job runs where it runs, or why it waits. LO-207."""
        await self._runtime.sure()
        check_own(self._runtime, request.job_id)
        return await self.explain(request.job_id)

    async def explain(self, job_id: str) -> pb.ExplainJobResponse:
        """Tells why a job runs where it runs, or why it waits.

        Raises:
            RefusalError: NOT_FOUND; STORE_UNAVAILABLE.
        """
        job = self._runtime.job(job_id)
        full = await self._explainer.complete(job) if self._explainer else {}
        return await self._durable(job_id, lambda job: explained(self._runtime, job, full))

    async def get_overview(
        self, request: pb.GetOverviewRequest, _: rpc.Context
    ) -> pb.GetOverviewResponse:
        """Tells what happens now, in short."""
        filtered = None if caller().sees_all else sees
        return await overview(self._runtime, request.rows_max, filtered)

    async def get_capabilities(
        self, _: pb.GetCapabilitiesRequest, __: rpc.Context
    ) -> pb.GetCapabilitiesResponse:
        """Tells what this server can do."""
        runtime = self._runtime
        return capabilities(runtime.core, self._facts, rpc.identity(), runtime.clock.now_ms())

    async def _durable(self, job_id: str, tell: Callable[[Job], _T]) -> _T:
        """What is told of a job, once that is durable; anew where its end was taken back meanwhile.

        Raises:
            RefusalError: NOT_FOUND, also when its accept was taken back; STORE_UNAVAILABLE.
        """
        await self._runtime.sure()
        check_own(self._runtime, job_id)
        while True:
            job = self._runtime.job(job_id)
            told, over = tell(job), not job.live
            await self._runtime.settled(job_id)
            now = self._runtime.job(job_id)
            if not (over and now.live):
                return told

    async def _enqueue(self, asked: job_pb2.JobSpec, caller: Caller) -> pb.EnqueueResponse:
        with self._telemetry.rpc("enqueue", caller.metadata) as span:
            spec, stale = self._parsed(asked, span, caller)
            with self._held(spec.input_artifact):
                receipt = await self._runtime.enqueue(spec, stale)
        return receipt_to_proto(receipt)

    def _give(self, asked: job_pb2.JobSpec, caller: Caller, tell: Tell) -> Forget | None:
        """As `_enqueue`, without a task; see `JobCalls.give`."""
        if not self._runtime.certain():
            return None
        call = self._telemetry.rpc("enqueue", caller.metadata)
        span = call.__enter__()
        try:
            spec, stale = self._parsed(asked, span, caller)
            number = self._runtime.give(
                spec, lambda answer: tell(partial(_answer_of, call, answer)), stale
            )
        except BaseException as error:
            call.__exit__(type(error), error, None)
            raise
        call.pause()
        return partial(self._left, call, number)

    def _parsed(
        self, asked: job_pb2.JobSpec, span: Rpc, caller: Caller
    ) -> tuple[JobSpec, Refusal | None]:
        """The job, and what to answer unless it is a repetition. Raises `RefusalError`."""
        context = self._spec_context(span.traceparent, caller)
        if asked.HasField("deadline"):
            context = replace(context, ahead_ms=self._runtime.clock.ahead_ms())
        parsed = parse_spec(asked, context)
        if isinstance(parsed, Refusal):
            span.correlation_id = caller.correlation_id
            raise RefusalError(parsed)
        spec, stale = (parsed.spec, parsed.refusal) if isinstance(parsed, Stale) else (parsed, None)
        span.asked = spec
        return spec, stale

    def _held(self, input_artifact: str) -> AbstractContextManager[None]:
        """Keeps the input of a job until the job does."""
        if not input_artifact or self._artifacts is None:
            return contextlib.nullcontext()
        return self._artifacts.held(input_artifact)

    def _input_bytes(self, owner: str, artifact_id: str) -> int | None:
        """Bytes of text in an input of a client's own; None for any other artifact."""
        record = None if self._artifacts is None else self._artifacts.index.get(artifact_id)
        if record is None or record.owner != owner or record.kind is not ArtifactKind.INPUT:
            return None
        return record.prompt_bytes

    def _left(self, call: Call, number: int) -> None:
        self._runtime.forget(number)
        with contextlib.suppress(asyncio.CancelledError), call:
            raise asyncio.CancelledError

    async def _cancel(self, job_id: str, caller: Caller) -> pb.CancelResponse:
        with self._telemetry.rpc("cancel", caller.metadata):
            failpoints.reach("cancel.before")
            await self._runtime.sure()
            check_own(self._runtime, job_id)
            job = await self._runtime.cancel(job_id)
            failpoints.reach("cancel.after")
        return pb.CancelResponse(job=job_to_proto(job_view(self._runtime, job)))

    def _spec_context(self, traceparent: str, caller: Caller) -> SpecContext:
        now_ms = self._runtime.clock.now_ms()
        return SpecContext(
            identity=caller.identity,
            new_job_id=self._ids.new_job_id(now_ms),
            new_seed=self._ids.new_seed(),
            now_ms=now_ms,
            traceparent=traceparent,
            correlation_id=caller.correlation_id,
            limits=self._limits,
            inputs=partial(self._input_bytes, caller.identity),
        )


def _answer_of(call: Call, answer: Answer | Refusal) -> pb.EnqueueResponse:
    """Ends a call that was paused; its answer. Raises `RefusalError`."""
    with call:
        if isinstance(answer, Refusal):
            raise RefusalError(answer)
        assert isinstance(answer, Receipt)
        return receipt_to_proto(answer)


def _caller() -> Caller:
    return Caller(rpc.metadata(), rpc.correlation_id(), rpc.identity())


def _page_start(token: str) -> int | None:
    """Arrival number below which the page begins. Raises `RefusalError` for a foreign token."""
    if not token:
        return None
    if len(token) > PAGE_TOKEN_CHARS or not token.isascii() or not token.isdigit():
        raise foreign_token()
    return int(token)


def _answered(_: object) -> None:
    failpoints.reach("reply.after")
