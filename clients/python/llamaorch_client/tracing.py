# SPDX-License-Identifier: Apache-2.0
"""The client's two spans. Attributes never hold prompts, output or credentials.

Source: names and keys follow OpenTelemetry's RPC semantic conventions 1.44.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from llamaorch_client.errors import LlamaOrchError

ENQUEUE_SPAN = "llamaorch.enqueue"
STREAM_SPAN = "llamaorch.stream"
JOB_ID = "llamaorch.job_id"
REQUEST_ID = "llamaorch.request_id"
MODEL_ID = "llamaorch.model_id"
TEXT_BYTES = "llamaorch.text_bytes"
RESUMES = "llamaorch.resumes"
ERROR_TYPE = "error.type"
_SERVICE = "llamaorch.orchestrator.v1.OrchestratorService"


@contextmanager
def client_span(
    provider: TracerProvider | None, name: str, method: str, parent: Context | None
) -> Iterator[tuple[Span, Context]]:
    """Spans a call; yields the span and the context that calls inside it must carry.

    The span is not made current: a stream's span lives across the caller's own awaits, where a
    current span would leak into the caller's code.
    """
    tracer = trace.get_tracer("llamaorch_client", tracer_provider=provider)
    attributes = {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/{method}"}
    span = tracer.start_span(name, parent, SpanKind.CLIENT, attributes)
    try:
        yield span, trace.set_span_in_context(span, parent)
    except LlamaOrchError as error:
        # The reason only: a server's sentence may quote what the user sent.
        span.set_attribute(ERROR_TYPE, error.reason)
        span.set_status(Status(StatusCode.ERROR, error.reason))
        raise
    finally:
        span.end()
