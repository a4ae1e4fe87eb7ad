"""Calls of ArtifactService as tests make them."""

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from llamaorch.orchestrator.v1 import artifact_service_pb2_grpc as grpc_pb
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2_grpc as registry_grpc
from llamaorch_client.ending import Ending
from tests.integration.orchestrator.calls import WAIT_S, details
from tests.integration.orchestrator.conftest import Orchestrator

CHUNK_BYTES = 256 << 10


def sha256(content: bytes) -> str:
    """The digest of content."""
    return hashlib.sha256(content).hexdigest()


def header(kind: str = "PLAN", **fields: object) -> pb.ArtifactHeader:
    """A header of a kind."""
    return pb.ArtifactHeader(kind=pb.ArtifactKind.Value(f"ARTIFACT_KIND_{kind}"), **fields)  # type: ignore[arg-type]


def parts(
    content: bytes, told: pb.ArtifactHeader, chunk_bytes: int = CHUNK_BYTES
) -> Iterable[pb.PutArtifactRequest]:
    """The messages of a put."""
    yield pb.PutArtifactRequest(header=told)
    for at in range(0, len(content), chunk_bytes):
        yield pb.PutArtifactRequest(chunk=content[at : at + chunk_bytes])


async def put(
    stub: grpc_pb.ArtifactServiceStub, content: bytes, told: pb.ArtifactHeader | None = None
) -> pb.PutArtifactResponse:
    """Puts an artifact."""

    async def messages() -> AsyncIterator[pb.PutArtifactRequest]:
        for message in parts(content, told or header()):
            yield message

    return await answered(stub.PutArtifact(messages(), timeout=30))


async def answered(call: Any) -> pb.PutArtifactResponse:
    """The answer to a put, or the error with which the server ended it meanwhile."""
    ending = Ending(call)
    try:
        answer: pb.PutArtifactResponse = await call
    except grpc.aio.AioRpcError as error:
        raise await ending.error(error) from None
    return answer


async def get(
    stub: grpc_pb.ArtifactServiceStub, artifact_id: str, offset: int = 0, limit: int | None = None
) -> tuple[pb.Artifact, bytes]:
    """Reads an artifact, or a range of it."""
    request = pb.GetArtifactRequest(artifact_id=artifact_id, offset=offset, limit=limit)
    answers = [answer async for answer in stub.GetArtifact(request, timeout=30)]
    return answers[0].header, b"".join(answer.chunk for answer in answers[1:])


def objects(directory: Path) -> set[str]:
    """The content on disk."""
    return {path.name for path in (directory / "artifacts" / "objects").iterdir()}


def incoming(directory: Path) -> set[str]:
    """The uploads on disk that have not ended."""
    return {path.name for path in (directory / "artifacts" / "incoming").iterdir()}


async def put_input(
    orchestrator: Orchestrator, content: bytes = b"hello", media_type: str = "text/plain"
) -> str:
    """Puts an input; its id."""
    answer = await put(orchestrator.artifacts, content, header("INPUT", media_type=media_type))
    return answer.artifact.artifact_id


def of(artifact_id: str) -> job_pb2.JobInput:
    """The input of a job."""
    return job_pb2.JobInput(artifact_id=artifact_id)


async def fetch(orchestrator: Orchestrator, job_id: str, attempt: int = 1) -> job_pb2.JobInput:
    """The input of an attempt, as its host gets it."""
    stub = registry_grpc.PoolRegistryServiceStub(orchestrator.channel)
    request = registry_pb2.FetchInputRequest(job_id=job_id, attempt=attempt)
    pieces = [piece async for piece in stub.FetchInput(request, timeout=WAIT_S)]
    data = b"".join(piece.chunk for piece in pieces)
    assert pieces[0].size_bytes == len(data)
    return job_pb2.JobInput.FromString(data)


async def refused(call: object) -> tuple[str, str, str]:
    """The reason, the label and the text of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    info = details(caught.value)[0]
    return info.reason, info.metadata.get("policy_label", ""), caught.value.details() or ""


async def listed(kept: Orchestrator, **fields: object) -> list[str]:
    """Ids of the artifacts of a list, all pages."""
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListArtifactsRequest(page_size=2, page_token=token, **fields)  # type: ignore[arg-type]
        page = await kept.artifacts.ListArtifacts(request)
        found += [each.artifact_id for each in page.artifacts]
        token = page.next_page_token
        if not token:
            return found
