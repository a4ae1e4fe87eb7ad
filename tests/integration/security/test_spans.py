"""Spans of calls say whose they are, and never with what. AUTH-1008."""

import grpc

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from orchestrator_core.auth.tokens import fingerprint, sha256_of
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot
from tests.integration.security.conftest import StartGuarded
from tests.integration.telemetry.receiver import receiving

TRACE = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


async def test_spans_of_calls_name_the_caller_and_six_digits_of_its_tokens_hash(
    start_guarded: StartGuarded,
) -> None:
    """AUTH-1008: jobs that are given, cancelled and looked at, also on an Exchange."""
    with receiving() as received:
        guarded = await start_guarded(otlp_traces_endpoint=received.endpoint)
        token = guarded.tokens["client"]
        who = (*guarded.metadata("client"), TRACE)
        async with grpc.aio.insecure_channel(guarded.address) as channel:
            host = ScriptedHost(channel, "host-1", "boot-1", guarded.metadata("pool"))
            await host.register(snapshot())
            stub = jobs_grpc.OrchestratorServiceStub(channel)
            spec = job_pb2.JobSpec(model_id="tiny", input=job_pb2.JobInput(text="hello"))
            job = await stub.Enqueue(pb.EnqueueRequest(spec=spec), metadata=who)
            await stub.GetJob(pb.GetJobRequest(job_id=job.job_id), metadata=who)
            await stub.Cancel(pb.CancelRequest(job_id=job.job_id), metadata=who)
            stream = stub.Exchange(metadata=who)
            given = pb.ExchangeEnqueue(spec=spec)
            await stream.write(pb.ExchangeRequest(correlation_id=1, enqueue=given))
            await stream.read()
            stream.cancel()
        await guarded.server.stop()
        spans = [
            span
            for resource in received.resource_spans()
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    told: dict[str, set[tuple[str, str]]] = {}
    for span in spans:
        values = {entry.key: entry.value.string_value for entry in span.attributes}
        if "rpc.method" in values:
            found = values["llamaorch.identity"], values["llamaorch.token_fingerprint"]
            told.setdefault(span.name.rpartition("/")[2], set()).add(found)
    client = ("client", fingerprint(token))
    assert told["enqueue"] == told["cancel"] == told["GetJob"] == {client}
    assert sum(span.name == "enqueue" for span in spans) == 2
    written = "".join(map(str, spans))
    assert token not in written
    assert sha256_of(token)[:16] not in written
