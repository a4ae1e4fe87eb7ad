"""A real OTLP/gRPC receiver on a free port."""

import queue
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


class Received(
    trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer
):
    """Keeps what was exported to it."""

    def __init__(self) -> None:
        self._spans: queue.Queue[trace_pb2.ResourceSpans] = queue.Queue()
        self._metrics: queue.Queue[metrics_pb2.ResourceMetrics] = queue.Queue()
        self.endpoint = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        """Both services name their one method so."""
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self._spans.put(resource)
            return trace_service_pb2.ExportTraceServiceResponse()
        for metrics in request.resource_metrics:
            self._metrics.put(metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def resource_spans(self) -> list[trace_pb2.ResourceSpans]:
        """All spans so far, by resource."""
        return _drain(self._spans)

    def resource_metrics(self) -> list[metrics_pb2.ResourceMetrics]:
        """All metrics so far, by resource."""
        return _drain(self._metrics)


def _drain(held: "queue.Queue[Any]") -> list[Any]:
    return [held.get_nowait() for _ in range(held.qsize())]


@contextmanager
def receiving() -> Iterator[Received]:
    """Serves until the block ends."""
    received = Received()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(received, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(received, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    received.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield received
    finally:
        server.stop(None).wait()
