"""Spans as a collector receives them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator, ScriptedEngine
from tests.integration.pool_managerd.harness import Host, make_config

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(  # noqa: N802 - the wire's name
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: aio.ServicerContext,
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """One batch."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    """A real OTLP receiver and its address."""
    server, servicer = aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    await server.stop(0)


async def test_an_attempt_is_one_trace_from_job_to_engine(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str]
) -> None:
    """pool.attempt is a child of the job, engine.generate of it, and the engine gets the latter."""
    received, endpoint = collector
    engine = ScriptedEngine()
    config = make_config(orchestrator.address).model_copy(update={"otlp_endpoint": endpoint})
    manager = PoolManager(config, engine_factory=lambda _table, _ref: engine, devices=CpuDevices())
    host = Host(orchestrator, manager, asyncio.create_task(manager.run()), [engine])
    await host.start("j1", 1, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01", correlation_id="c1")
    engine.say("j1", "secret words", end=True)
    await orchestrator.until(lambda: orchestrator.stored(1).ended)

    manager.drain()
    async with asyncio.timeout(WAIT_S):
        await host.task

    spans = {span.name: span for span in received.spans}
    attempt, generate = spans["pool.attempt"], spans["engine.generate"]
    assert attempt.trace_id.hex() == generate.trace_id.hex() == TRACE_ID
    assert attempt.parent_span_id.hex() == PARENT_ID
    assert generate.parent_span_id == attempt.span_id
    assert engine.requests[0].traceparent.split("-")[1:3] == [TRACE_ID, generate.span_id.hex()]
    keys = {entry.key for entry in attempt.attributes}
    assert {"llamaorch.job_id", "llamaorch.replica_id", "llamaorch.outcome"} <= keys
    assert "secret" not in str(received.spans)
    assert {"pool.start", "pool.stop", "pool.drain"} <= set(spans)
