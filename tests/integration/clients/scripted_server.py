"""A real gRPC server that follows a test's script and keeps what it was sent."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from llamaorch.orchestrator.v1 import (
    config_service_pb2_grpc,
    events_pb2,
    job_pb2,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    pool_admin_service_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Hang:
    """A step that lasts until the client leaves."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Everything about an error that a test wants to choose."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "scripted"
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    violations: tuple[tuple[str, str], ...] = ()

    def status(self) -> status_pb2.Status:
        """Returns the google.rpc.Status."""
        details: list[Message] = []
        if self.reason:
            details.append(
                error_details_pb2.ErrorInfo(
                    reason=self.reason, domain="llamaorch.dev", metadata=self.metadata
                )
            )
        if self.retry_after_ms is not None:
            delay = Duration()
            delay.FromMilliseconds(self.retry_after_ms)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for name, description in self.violations:
                bad.field_violations.add(field=name, description=description)
            details.append(bad)
        packed = [PackedAny() for _ in details]
        for target, detail in zip(packed, details, strict=True):
            target.Pack(detail)
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)


Step = Sequence[events_pb2.JobEvent] | Sequence[Message] | Failure | Hang
Reply = Message | Failure | Hang | Sequence[Step]
Script = Reply | Callable[[Any], Reply]


def rejected(retry_after_ms: int | None = 250, policy: str = "reject") -> Failure:
    """A full queue."""
    metadata = {"policy_label": policy, "retriable": "true"}
    if retry_after_ms is not None:
        metadata["retry_after_ms"] = str(retry_after_ms)
    return Failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "ADMISSION_REJECT",
        "the queue is full",
        metadata,
        retry_after_ms,
    )


def unavailable(retry_after_ms: int | None = None) -> Failure:
    """A server without pools."""
    return Failure(
        grpc.StatusCode.UNAVAILABLE,
        "POOL_UNAVAILABLE",
        "no pool is registered",
        retry_after_ms=retry_after_ms,
    )


class ScriptedServer(
    orchestrator_service_pb2_grpc.OrchestratorServiceServicer,
    pool_admin_service_pb2_grpc.PoolAdminServiceServicer,
    config_service_pb2_grpc.ConfigServiceServicer,
):
    """Serves `on(...)`'s replies in order; the last one stays. Records every call."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Call] = []
        self.client_left = asyncio.Event()
        self.correlation_id = ""
        self.serving = health_pb2.HealthCheckResponse.SERVING
        self._scripts: dict[str, deque[Script]] = {}
        self._arrived = asyncio.Condition()
        self._server = aio.server()
        orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, self._server)
        pool_admin_service_pb2_grpc.add_PoolAdminServiceServicer_to_server(self, self._server)
        config_service_pb2_grpc.add_ConfigServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def on(self, method: str, *replies: Script) -> Self:
        """Sets the replies of a method."""
        self._scripts[method] = deque(replies)
        return self

    def scripts(self, method: str) -> list[Script]:
        """The replies that are left."""
        return list(self._scripts[method])

    def made(self, method: str) -> list[Call]:
        """The calls of a method, in order."""
        return [call for call in self.calls if call.method == method]

    async def wait_for(self, method: str, count: int = 1) -> None:
        """Waits until a method was called `count` times."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.made(method)) >= count)

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ends every call and the server, as a crash would; stopping twice is fine."""
        await self._server.stop(None)

    async def Enqueue(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("Enqueue", request, context)

    async def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("Cancel", request, context)

    async def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("GetJob", request, context)

    async def ListJobs(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("ListJobs", request, context)

    async def ExplainJob(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("ExplainJob", request, context)

    async def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("GetCapabilities", request, context)

    async def DrainPool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("DrainPool", request, context)

    async def ReloadPool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("ReloadPool", request, context)

    async def GetConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("GetConfig", request, context)

    async def ReloadConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("ReloadConfig", request, context)

    async def ListPools(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("ListPools", request, context)

    async def GetOverview(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        """Answers from the script."""
        return await self._unary("GetOverview", request, context)

    async def WatchPools(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - the stub's name
        """Plays the script's steps; each sequence is of messages."""
        steps = await self._next("WatchPools", request, context)
        for step in [steps] if isinstance(steps, Failure | Hang) else steps:
            if isinstance(step, Failure):
                await context.abort_with_status(rpc_status.to_status(step.status()))
            elif isinstance(step, Hang):
                await self._hang()
            else:
                for message in step:
                    yield message

    async def StreamTokens(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - the stub's name
        """Plays the script's steps; each sequence of events is one message."""
        steps = await self._next("StreamTokens", request, context)
        if isinstance(steps, Failure | Hang):
            steps = [steps]
        for step in steps:
            if isinstance(step, Failure):
                await context.abort_with_status(rpc_status.to_status(step.status()))
            elif isinstance(step, Hang):
                await self._hang()
            else:
                yield orchestrator_service_pb2.StreamTokensResponse(events=step)

    async def _unary(self, method: str, request: Any, context: Any) -> Any:
        reply = await self._next(method, request, context)
        if isinstance(reply, Failure):
            await context.abort_with_status(rpc_status.to_status(reply.status()))
        if isinstance(reply, Hang):
            await self._hang()
        return reply

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.client_left.set()

    async def _next(self, method: str, request: Any, context: Any) -> Any:
        metadata = {
            key: value for key, value in context.invocation_metadata() if isinstance(value, str)
        }
        async with self._arrived:
            self.calls.append(Call(method, request, metadata))
            self._arrived.notify_all()
        returned = self.correlation_id or metadata["x-correlation-id"]
        await context.send_initial_metadata((("x-correlation-id", returned),))
        replies = self._scripts.get(method)
        if not replies:
            return Failure(grpc.StatusCode.UNIMPLEMENTED, message=f"no script for {method}")
        script = replies.popleft() if len(replies) > 1 else replies[0]
        return script(request) if callable(script) else script


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the stub's name
        return health_pb2.HealthCheckResponse(status=self._server.serving)


def digest(text: str) -> int:
    """First eight bytes, big-endian, of the text's SHA-256: written apart from the client's own."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:16], 16)


def tokens(
    before: str, pieces: Iterable[str], first_index: int = 0, attempt: int = 1
) -> events_pb2.JobEvent:
    """A batch of output after the text `before`."""
    return events_pb2.JobEvent(
        tokens=events_pb2.TokenBatch(
            attempt=attempt,
            first_index=first_index,
            text_offset=len(before.encode()),
            prefix_digest=digest(before),
            pieces=list(pieces),
        )
    )


def started(attempt: int = 1, pool: str = "gpu-a") -> events_pb2.JobEvent:
    """A started event."""
    return events_pb2.JobEvent(
        started=events_pb2.Started(
            queue_position=2,
            queue_time_ms=7,
            pool_id=pool,
            replica_id="r1",
            attempt=attempt,
            seed=42,
        )
    )


def resumed(attempt: int, text_offset: int = 0) -> events_pb2.JobEvent:
    """A later attempt that goes on."""
    return events_pb2.JobEvent(
        resumed=events_pb2.Resumed(
            attempt=attempt,
            mode=events_pb2.RESUME_MODE_CONTINUE,
            text_offset=text_offset,
            pool_id="gpu-b",
        )
    )


def queued(position: int) -> events_pb2.JobEvent:
    """A queued event."""
    return events_pb2.JobEvent(
        queued=events_pb2.Queued(queue_position=position, predicted_start_ms=1500)
    )


def end(
    text: str, state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_FINISHED
) -> events_pb2.JobEvent:
    """The outcome of a job with the output `text`."""
    return events_pb2.JobEvent(
        end=events_pb2.End(
            state=state,
            finish_reason=job_pb2.FINISH_REASON_EOS,
            usage=job_pb2.Usage(tokens_in=3, tokens_out=5, first_token_ms=20, decode_time_ms=100),
            text_bytes=len(text.encode()),
            text_digest=digest(text),
        )
    )


def failed(failure: Failure) -> events_pb2.JobEvent:
    """The outcome of a job that failed."""
    return events_pb2.JobEvent(error=failure.status())


def accepted(job_id: str = "job-1", **fields: Any) -> orchestrator_service_pb2.EnqueueResponse:
    """An answer to Enqueue."""
    return orchestrator_service_pb2.EnqueueResponse(
        job_id=job_id, queue_position=1, seed=42, **fields
    )


def job(
    job_id: str = "job-1",
    state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_RUNNING,
    **fields: Any,
) -> job_pb2.Job:
    """A job as the server sees it."""
    return job_pb2.Job(job_id=job_id, state=state, model_id="tiny", **fields)
