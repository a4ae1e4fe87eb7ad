# SPDX-License-Identifier: Apache-2.0
"""The client's two spans. Attributes never hold prompts, output or credentials.

Source: `rpc.*` are OpenTelemetry's semantic conventions 1.44.0, `gen_ai.*` those of
opentelemetry/semantic-conventions-genai, still in development.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from llamaorch_client.errors import LlamaOrchError
from llamaorch_client.events import End
from llamaorch_client.request import JobRequest

ENQUEUE_SPAN = "llamaorch.enqueue"
STREAM_SPAN = "llamaorch.stream"
JOB_ID = "llamaorch.job_id"
REQUEST_ID = "llamaorch.request_id"
MODEL_ID = "llamaorch.model_id"
TEXT_BYTES = "llamaorch.text_bytes"
RESUMES = "llamaorch.resumes"
ERROR_TYPE = "error.type"
PROVIDER = "llama-orch"
_SERVICE = "llamaorch.orchestrator.v1.OrchestratorService"


def asked(job: JobRequest, request_id: str) -> dict[str, AttributeValue]:
    """What a job asks for; nothing of its input."""
    sampling = job.sampling
    keys = {
        REQUEST_ID: request_id,
        MODEL_ID: job.model_id,
        "gen_ai.operation.name": "chat" if job.messages else "text_completion",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.model_id,
        "gen_ai.conversation.id": job.session_id or None,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": sampling.seed,
    }
    return _known(keys)


def told(event: End) -> dict[str, AttributeValue]:
    """What a job's end says of it."""
    keys = {
        "gen_ai.usage.input_tokens": event.usage.tokens_in,
        "gen_ai.usage.output_tokens": event.usage.tokens_out,
        "gen_ai.response.finish_reasons": (event.finish_reason.value.lower(),),
    }
    return _known(keys)


def _known(keys: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {key: value for key, value in keys.items() if value is not None}


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
