"""Spans and metrics over real OTLP/gRPC."""

import asyncio
import socket
import threading
import time

import pytest

from orchestrator_core.config.loading import load_config
from orchestrator_core.telemetry.telemetry import Telemetry
from pool_managerd.telemetry import Telemetry as HostTelemetry
from tests.integration.telemetry.driver import Driver, OneGpu
from tests.integration.telemetry.receiver import receiving

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
EXPORTER_THREADS = {"OtelBatchSpanRecordProcessor", "traces-shutdown", "telemetry-stop"}
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


async def test_a_job_arrives_at_a_collector_as_one_trace() -> None:
    """Shutdown sends what the batch still held; the spans continue the caller's trace."""
    with receiving() as received:
        environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": received.endpoint}
        telemetry = Telemetry.from_config(load_config(None, environ))
        driver = Driver(telemetry)
        driver.host()
        trace_id = driver.enqueue("last", TRACEPARENT)
        driver.finish("last")

        await telemetry.shutdown(timeout_ms=10_000)

        resources = received.resource_spans()
    services = {
        attribute.value.string_value
        for resource in resources
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
    }
    spans = [
        span
        for resource in resources
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == TRACE_ID
    ]
    (call,) = [span for span in spans if span.name == "enqueue"]
    children = {span.name for span in spans if span.parent_span_id == call.span_id}
    assert trace_id == TRACE_ID
    assert services == {"orchestratord"}
    assert children == {"admit", "queue.wait", "place", "dispatch", "decode"}
    assert call.parent_span_id.hex() == "b7ad6b7169203331"


async def test_metrics_arrive_at_a_collector_with_gauges() -> None:
    """The last values are sent at shutdown."""
    with receiving() as received:
        environ = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": received.endpoint}
        telemetry = Telemetry.from_config(load_config(None, environ), OneGpu())
        Driver(telemetry).everything()

        await telemetry.shutdown(timeout_ms=10_000)

        names = {
            metric.name
            for resource in received.resource_metrics()
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
    assert {"tasks_enqueued_total", "pool_state", "gpu_utilization"} <= names


async def test_a_collector_that_is_away_does_not_hold_up_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing listens there; the shutdown keeps its limit and the loop stays free."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}
    telemetry = Telemetry.from_config(load_config(None, environ))
    Driver(telemetry).everything()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    started_ns = time.monotonic_ns()
    await telemetry.shutdown(timeout_ms=300)
    took_ms = (time.monotonic_ns() - started_ns) // 1_000_000
    counting.cancel()

    # The exporter's threads go on trying for its timeout; they must not reach into other tests.
    left = [thread for thread in threading.enumerate() if thread.name in EXPORTER_THREADS]
    for thread in left:
        await asyncio.to_thread(thread.join, 10.0)
    assert not any(thread.is_alive() for thread in left)
    assert took_ms < 5_000
    assert turns > 0


def test_a_host_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: the process ends while the export still waits."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"

        async def live() -> None:
            telemetry = HostTelemetry(endpoint, endpoint)
            await telemetry.start(lambda: None)
            telemetry.event("pool.stop", {})
            await telemetry.stop(timeout_ms=100)

        # Its end waits for the threads of the loop, as the process does.
        asyncio.run(live())

        waiting = [thread for thread in threading.enumerate() if thread.name in EXPORTER_THREADS]
    assert waiting
    assert all(thread.daemon for thread in waiting)
    for thread in waiting:
        thread.join(10.0)
