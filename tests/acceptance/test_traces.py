"""One trace per job, from the client to the engine, received over real OTLP/gRPC."""

import asyncio

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from llamaorch_client import AsyncClient, ClientOptions, Sampling
from tests.acceptance.conftest import StartStack
from tests.integration.telemetry.receiver import receiving

WAIT_S = 30.0


async def test_one_trace_leads_from_the_client_to_the_engine(start_stack: StartStack) -> None:
    """All spans of a job share its trace id, and every parent is among them."""
    with receiving() as received:
        provider = TracerProvider(resource=Resource.create({"service.name": "client"}))
        exporter = OTLPSpanExporter(endpoint=received.endpoint, insecure=True)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        stack = await start_stack(env={"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint})
        options = ClientOptions(tracer_provider=provider)
        async with AsyncClient(stack.address, options=options) as client, asyncio.timeout(WAIT_S):
            stream = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=5))
            result = await stream.result()
            assert result.receipt is not None
            explanation = await client.explain(result.receipt.job_id)
        await stack.stop()
        provider.shutdown()
        resources = received.resource_spans()

    trace_id = bytes.fromhex(explanation.trace_id)
    spans = [
        (attribute.value.string_value, span)
        for resource in resources
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id == trace_id
    ]
    names = {(service, span.name) for service, span in spans}
    ids = {span.span_id for _, span in spans}
    assert {service for service, _ in names} == {"client", "orchestratord", "pool-managerd"}
    decisions = {name for service, name in names if service == "orchestratord"}
    assert {"enqueue", "admit", "queue.wait", "place", "dispatch", "decode"} <= decisions
    assert ("pool-managerd", "engine.generate") in names
    assert [span.name for _, span in spans if span.parent_span_id not in {*ids, b""}] == []
