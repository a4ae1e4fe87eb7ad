"""Calls that the tests make, and readers of what comes back."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call

from llamaorch.orchestrator.v1 import events_pb2, job_pb2, orchestrator_service_pb2
from tests.integration.orchestrator.conftest import Orchestrator
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot

WAIT_S = 20.0


def spec(**fields: object) -> job_pb2.JobSpec:
    """A minimal job for the scripted model."""
    base: dict[str, object] = {"model_id": "tiny", "input": job_pb2.JobInput(text="hello")}
    return job_pb2.JobSpec(**(base | fields))  # type: ignore[arg-type]


async def enqueue(
    orchestrator: Orchestrator, **fields: object
) -> orchestrator_service_pb2.EnqueueResponse:
    """Gives a job and returns the receipt."""
    request = orchestrator_service_pb2.EnqueueRequest(spec=spec(**fields))
    return await orchestrator.jobs.Enqueue(request)


async def job(orchestrator: Orchestrator, job_id: str) -> job_pb2.Job:
    """Looks a job up."""
    request = orchestrator_service_pb2.GetJobRequest(job_id=job_id)
    return (await orchestrator.jobs.GetJob(request)).job


async def follow(
    orchestrator: Orchestrator, job_id: str, resume: events_pb2.ResumePoint | None = None
) -> AsyncIterator[events_pb2.JobEvent]:
    """Yields the events of a job one by one."""
    request = orchestrator_service_pb2.StreamTokensRequest(job_id=job_id, resume_from=resume)
    async for response in orchestrator.jobs.StreamTokens(request):
        for event in response.events:
            yield event


async def all_events(
    orchestrator: Orchestrator, job_id: str, resume: events_pb2.ResumePoint | None = None
) -> list[events_pb2.JobEvent]:
    """Every event of a job up to the close of the stream."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in follow(orchestrator, job_id, resume)]


def kinds(events: list[events_pb2.JobEvent]) -> list[str | None]:
    """Names of events, without those that come by the clock."""
    names = [event.WhichOneof("event") for event in events]
    return [name for name in names if name not in {"queued", "metrics"}]


def text(events: list[events_pb2.JobEvent]) -> str:
    """Text of all token events."""
    return "".join(piece for event in events for piece in event.tokens.pieces)


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, dict[str, object]]:
    """ErrorInfo and all other details of an error by type name."""
    status = from_call(error)
    assert status is not None
    found: dict[str, object] = {}
    info = error_details_pb2.ErrorInfo()
    for packed in status.details:
        if packed.Unpack(info):
            continue
        name = packed.TypeName().rsplit(".", 1)[1]
        message = getattr(error_details_pb2, name)()
        packed.Unpack(message)
        found[name] = message
    return info, found


async def ready_host(orchestrator: Orchestrator, **overrides: object) -> ScriptedHost:
    """A registered host with one ready pool."""
    host = orchestrator.host()
    await host.register(snapshot(**overrides))
    return host
