"""Spans as a collector receives them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.engines.port import Failed, Failure
from pool_managerd.server import PoolManager
from pool_managerd.telemetry import names
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator, ScriptedEngine, digest
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


@asynccontextmanager
async def traced_host(
    orchestrator: FakeOrchestrator, endpoint: str
) -> AsyncIterator[tuple[Host, ScriptedEngine]]:
    """A pool manager that exports its spans; all of them have arrived after the block."""
    engines: list[ScriptedEngine] = [ScriptedEngine()]

    def make_engine(*_: object) -> ScriptedEngine:
        if started:
            engines.append(ScriptedEngine())
        started.append(engines[-1])
        return engines[-1]

    started: list[ScriptedEngine] = []
    config = make_config(orchestrator.address).model_copy(update={"otlp_endpoint": endpoint})
    manager = PoolManager(config, engine_factory=make_engine, devices=CpuDevices())
    host = Host(orchestrator, manager, asyncio.create_task(manager.run()), engines)
    try:
        yield host, engines[0]
    finally:
        manager.drain()
        async with asyncio.timeout(WAIT_S):
            await host.task


def keys_of(span: Any) -> dict[str, Any]:
    """A span's attributes by key; only those that the table lists."""
    row = next(row for row in names.SPANS if row.name == span.name)
    found = {entry.key: entry.value for entry in span.attributes}
    assert found.keys() <= {names.key(name) for name in row.keys}, span.name
    return found


async def test_an_attempt_is_one_trace_from_job_to_engine(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str]
) -> None:
    """pool.attempt is a child of the job, engine.generate of it, and the engine gets the latter."""
    received, endpoint = collector
    async with traced_host(orchestrator, endpoint) as (host, engine):
        await host.start("j1", 1, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01", correlation_id="c1")
        engine.say("j1", "secret words", end=True)
        await orchestrator.until(lambda: orchestrator.stored(1).ended)

    spans = {span.name: span for span in received.spans}
    attempt, generate = spans["pool.attempt"], spans["engine.generate"]
    assert attempt.trace_id.hex() == generate.trace_id.hex() == TRACE_ID
    assert attempt.parent_span_id.hex() == PARENT_ID
    assert generate.parent_span_id == attempt.span_id
    assert engine.requests[0].traceparent.split("-")[1:3] == [TRACE_ID, generate.span_id.hex()]
    keys = keys_of(attempt)
    assert keys.keys() >= {"llamaorch.job_id", "llamaorch.replica_id", "llamaorch.outcome"}
    assert (
        keys["llamaorch.engine"].string_value
        == keys_of(generate)["gen_ai.provider.name"].string_value
    )
    assert keys_of(generate)["gen_ai.operation.name"].string_value == "text_completion"
    assert generate.kind == Span.SPAN_KIND_CLIENT
    assert "secret" not in str(received.spans)
    assert {"pool.start", "pool.stop", "pool.drain"} <= set(spans)
    for span in received.spans:
        keys_of(span)


@pytest.mark.parametrize("fails", [False, True])
async def test_of_what_was_sampled_out_only_a_failed_attempt_is_exported(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str], *, fails: bool
) -> None:
    """With the spans below it; spans that belong to no job always are."""
    received, endpoint = collector
    async with traced_host(orchestrator, endpoint) as (host, engine):
        await host.start("j1", 1, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-00")
        if fails:
            engine.feed("j1").put_nowait(Failed(Failure.ENGINE_ERROR, "it broke"))
        else:
            engine.say("j1", "words", end=True)
        await orchestrator.until(lambda: orchestrator.stored(1).ended)

    of_job = sorted(span.name for span in received.spans if span.trace_id.hex() == TRACE_ID)
    assert of_job == (["engine.generate", "pool.attempt"] if fails else [])
    assert engine.requests[0].traceparent.endswith("-00")
    assert "pool.start" in {span.name for span in received.spans}
    if fails:
        (attempt,) = [span for span in received.spans if span.name == "pool.attempt"]
        assert keys_of(attempt)["error.type"].string_value == "engine_error"


async def test_a_refused_attempt_is_a_span_of_its_jobs_trace(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str]
) -> None:
    """Why it waits again is in the trace."""
    received, endpoint = collector
    async with traced_host(orchestrator, endpoint) as (host, _):
        await host.ready()
        parent = f"00-{TRACE_ID}-{PARENT_ID}-01"
        await host.start("j1", 1, replica_id="p0-of-yesterday", traceparent=parent)
        await orchestrator.until(lambda: orchestrator.stored(1).refused)

    (refused,) = [span for span in received.spans if span.name == "attempt.refuse"]
    assert refused.parent_span_id.hex() == PARENT_ID
    assert keys_of(refused)["llamaorch.reason"].string_value == "unknown_replica"


async def test_the_first_chunk_of_a_continuation_is_the_first_that_its_engine_made(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str]
) -> None:
    """What was delivered before lies in front of it, and took this engine no time at all."""
    received, endpoint = collector
    async with traced_host(orchestrator, endpoint) as (host, engine):
        point = events_pb2.ResumePoint(attempt=1, text_offset=4, prefix_digest=digest("one "))
        goes_on = {"continue_from": point, "continue_text": "one ", "continue_index": 1}
        await host.start("j1", 1, attempt=2, **goes_on)
        engine.say("j1", "two", attempt=2, end=True)
        await orchestrator.until(lambda: orchestrator.stored(1).ended)

    (generate,) = [span for span in received.spans if span.name == "engine.generate"]
    assert keys_of(generate)["gen_ai.response.time_to_first_chunk"].double_value >= 0


def _ready_again(orchestrator: FakeOrchestrator, first: str) -> bool:
    ready = orchestrator.ready()
    return ready is not None and ready.replica_id != first


async def test_a_reload_is_a_span(
    orchestrator: FakeOrchestrator, collector: tuple[Collector, str]
) -> None:
    """From the wish until the pool is idle."""
    received, endpoint = collector
    async with traced_host(orchestrator, endpoint) as (host, _):
        first = await host.ready()
        orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0"))
        await orchestrator.until(lambda: _ready_again(orchestrator, first))

    (reload,) = [span for span in received.spans if span.name == "pool.reload"]
    assert keys_of(reload)["llamaorch.pool_id"].string_value == "p0"
