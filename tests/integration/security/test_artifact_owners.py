"""Whose artifacts a token opens. AUTH-1003, AUTH-1007."""

import grpc
import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from llamaorch.orchestrator.v1 import artifact_service_pb2_grpc as grpc_pb
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2_grpc as registry_grpc
from tests.integration.orchestrator.artifact_calls import answered, header, parts
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot
from tests.integration.security.conftest import Guarded

Metadata = tuple[tuple[str, str], ...]


async def put(
    stub: grpc_pb.ArtifactServiceStub, metadata: Metadata, told: pb.ArtifactHeader | None = None
) -> str:
    """Puts an artifact; its id."""
    messages = parts(b"hello", told or header("INPUT", media_type="text/plain"))
    answer = await answered(stub.PutArtifact(iter(messages), metadata=metadata))
    return str(answer.artifact.artifact_id)


async def code(call: object) -> grpc.StatusCode:
    """The code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code()


async def test_a_client_sees_its_own_artifacts_and_an_admin_all(
    guarded: Guarded, channel: grpc.aio.Channel
) -> None:
    """To others an id is as unknown as one that nobody has."""
    stub = grpc_pb.ArtifactServiceStub(channel)
    client, admin = guarded.metadata("client"), guarded.metadata("admin")
    theirs, own = await put(stub, admin), await put(stub, client)
    child = header(parent_ids=[theirs])
    request = pb.GetArtifactInfoRequest(artifact_id=theirs)
    reading = stub.GetArtifact(pb.GetArtifactRequest(artifact_id=theirs), metadata=client)
    job = job_pb2.JobSpec(model_id="tiny", input=job_pb2.JobInput(artifact_id=theirs))
    enqueue = jobs_grpc.OrchestratorServiceStub(channel).Enqueue

    refused = [
        await code(stub.GetArtifactInfo(request, metadata=client)),
        await code(reading.read()),
        await code(
            stub.DeleteArtifact(pb.DeleteArtifactRequest(artifact_id=theirs), metadata=client)
        ),
        await code(put(stub, client, child)),
    ]
    as_input = await code(enqueue(jobs_pb2.EnqueueRequest(spec=job), metadata=client))
    listed = await stub.ListArtifacts(pb.ListArtifactsRequest(), metadata=client)
    every = await stub.ListArtifacts(pb.ListArtifactsRequest(), metadata=admin)

    assert refused == [grpc.StatusCode.NOT_FOUND] * 4
    assert as_input == grpc.StatusCode.INVALID_ARGUMENT
    assert own != theirs
    assert [each.artifact_id for each in listed.artifacts] == [own]
    assert [each.artifact_id for each in every.artifacts] == [own, theirs]
    delete = pb.DeleteArtifactRequest(artifact_id=own)
    await stub.DeleteArtifact(delete, metadata=admin)


async def test_an_input_is_for_the_host_that_runs_its_job(
    guarded: Guarded, channel: grpc.aio.Channel
) -> None:
    """Another token does not open it, though its role may fetch inputs."""
    client, pool, admin = (guarded.metadata(role) for role in ("client", "pool", "admin"))
    artifact_id = await put(grpc_pb.ArtifactServiceStub(channel), client)
    host = ScriptedHost(channel, "host-1", "boot-1", pool)
    await host.register(snapshot())
    job = job_pb2.JobSpec(model_id="tiny", input=job_pb2.JobInput(artifact_id=artifact_id))
    receipt = await jobs_grpc.OrchestratorServiceStub(channel).Enqueue(
        jobs_pb2.EnqueueRequest(spec=job), metadata=client
    )
    await host.start()
    stub = registry_grpc.PoolRegistryServiceStub(channel)
    request = registry_pb2.FetchInputRequest(job_id=receipt.job_id, attempt=1)

    other = await code(stub.FetchInput(request, metadata=admin).read())
    pieces = [piece.chunk async for piece in stub.FetchInput(request, metadata=pool)]

    assert other == grpc.StatusCode.PERMISSION_DENIED
    assert job_pb2.JobInput.FromString(b"".join(pieces)).text == "hello"
    await host.close()
