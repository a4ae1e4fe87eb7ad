"""Contract of the unary calls: retries, errors, metadata, paging, traces."""

from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from llamaorch_client import (
    AccessError,
    AsyncClient,
    Budgets,
    ChatMessage,
    ClientOptions,
    Determinism,
    DuplicateError,
    FailoverPolicy,
    FieldViolation,
    IncompatibleError,
    IntegrityError,
    InvalidParamsError,
    JobFilter,
    JobRequest,
    JobState,
    KvHint,
    LlamaOrchError,
    NotFoundError,
    OnDisconnect,
    Priority,
    Requirements,
    Sampling,
    ServerError,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.scripted_server import Failure, ScriptedServer

JOB = JobRequest(model_id="tiny", prompt="Hi")


async def test_enqueue_returns_a_typed_receipt(server: ScriptedServer, client: AsyncClient) -> None:
    """HME-030: absent predictions are None; the correlation id given comes back."""
    server.on("Enqueue", wire.accepted(predicted_start_ms=0, backoff_ms=5))

    receipt = await client.enqueue(JOB, correlation_id="mine-1")

    assert (receipt.job_id, receipt.seed, receipt.backoff_ms) == ("job-1", 42, 5)
    assert (receipt.predicted_start_ms, receipt.predicted_end_ms) == (0, None)
    assert receipt.correlation_id == "mine-1"
    assert receipt.request_id == server.made("Enqueue")[0].request.spec.request_id != ""
    assert server.made("Enqueue")[0].metadata["x-correlation-id"] == "mine-1"


async def test_the_id_that_the_server_logged_is_the_one_exposed(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """HME-030: a server that replaces the id wins, on receipts and on errors."""
    server.correlation_id = "theirs-1"
    server.on("Enqueue", wire.accepted())
    server.on("GetJob", Failure(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"))

    receipt = await client.enqueue(JOB)
    with pytest.raises(NotFoundError) as caught:
        await client.get_job("job-1")

    assert (receipt.correlation_id, caught.value.correlation_id) == ("theirs-1", "theirs-1")


async def test_enqueue_takes_fields_instead_of_a_request(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Keyword arguments are the fields of JobRequest, each sent as it was given."""
    server.on("Enqueue", wire.accepted())

    await client.enqueue(
        model_id="tiny",
        messages=(ChatMessage("user", "Hi"),),
        priority=Priority.BATCH,
        sampling=Sampling(
            seed=0, temperature=0.0, json_schema="{}", engine_options={"mirostat": 2, "x": [True]}
        ),
        requirements=Requirements(min_vram_bytes=1, required_extensions=("grammar",)),
        budgets=Budgets(tokens=9),
        session_budgets=Budgets(cost_micros=8),
        failover=FailoverPolicy.CONTINUE,
        kv_hint=KvHint.REUSE,
        on_disconnect=OnDisconnect.CANCEL,
        determinism=Determinism.REQUIRED,
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        request_id="r-1",
    )

    spec = server.made("Enqueue")[0].request.spec
    assert (spec.priority, spec.request_id) == (job_pb2.PRIORITY_BATCH, "r-1")
    assert (spec.failover, spec.kv_hint) == (
        job_pb2.FAILOVER_POLICY_CONTINUE,
        job_pb2.KV_HINT_REUSE,
    )
    assert spec.on_disconnect == job_pb2.ON_DISCONNECT_CANCEL
    assert spec.determinism == job_pb2.DETERMINISM_REQUIRED
    assert (spec.requirements.min_vram_bytes, spec.budgets.tokens) == (1, 9)
    assert list(spec.requirements.required_extensions) == ["grammar"]
    assert spec.session_budgets == job_pb2.Budgets(cost_micros=8)
    assert not spec.budgets.HasField("time_ms")
    assert spec.sampling.WhichOneof("constraint") == "json_schema"
    assert spec.sampling.HasField("seed")
    assert not spec.sampling.HasField("top_p")
    assert spec.sampling.engine_options["mirostat"] == 2.0
    assert spec.deadline == Timestamp(seconds=1893456000)


async def test_every_bad_field_is_named(server: ScriptedServer, client: AsyncClient) -> None:
    """BadRequest's violations arrive whole and in order."""
    bad = Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PARAMS",
        violations=(("spec.model_id", "is required"), ("spec.input", "is required")),
    )
    server.on("Enqueue", bad)

    with pytest.raises(InvalidParamsError) as caught:
        await client.enqueue(JOB, correlation_id="c-9")

    assert caught.value.violations == (
        FieldViolation("spec.model_id", "is required"),
        FieldViolation("spec.input", "is required"),
    )
    assert caught.value.correlation_id == "c-9"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE", DuplicateError),
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, "INCOMPATIBLE_MODEL", IncompatibleError),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", AccessError),
        (grpc.StatusCode.INTERNAL, "INTERNAL", ServerError),
        (grpc.StatusCode.UNKNOWN, "A_NEW_REASON", ServerError),
        (grpc.StatusCode.NOT_FOUND, "", NotFoundError),
        (grpc.StatusCode.UNIMPLEMENTED, "", ServerError),
    ],
)
async def test_reasons_and_codes_become_their_own_exceptions(
    server: ScriptedServer,
    client: AsyncClient,
    code: grpc.StatusCode,
    reason: str,
    kind: type[LlamaOrchError],
) -> None:
    """The reason decides, else the code; none of these is retried."""
    server.on("GetJob", Failure(code, reason, "told"))

    with pytest.raises(LlamaOrchError) as caught:
        await client.get_job("job-1")

    assert type(caught.value) is kind
    assert (caught.value.reason, caught.value.message) == (reason or code.name, "told")
    assert len(server.made("GetJob")) == 1


async def test_cancel_returns_the_true_state(server: ScriptedServer, client: AsyncClient) -> None:
    """ORCH-3026: a finished job stays finished, its error is typed."""
    failed = wire.job(state=job_pb2.JOB_STATE_FAILED)
    failed.error.CopyFrom(Failure(grpc.StatusCode.ABORTED, "WORKER_RESET", "died").status())
    server.on("Cancel", orchestrator_service_pb2.CancelResponse(job=failed))

    job = await client.cancel("job-1")

    assert job.state is JobState.FAILED
    assert job.state.terminal
    assert job.error is not None
    assert (job.error.reason, job.accepted_at) == ("WORKER_RESET", None)


async def test_states_of_a_newer_server_are_tolerated(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """An unknown enum value reads as UNSPECIFIED."""
    job = job_pb2.Job(job_id="job-1")
    job.MergeFromString(bytes([0x10, 0x63]))
    server.on("GetJob", orchestrator_service_pb2.GetJobResponse(job=job))

    assert (await client.get_job("job-1")).state is JobState.UNSPECIFIED


def _page(names: str, token: str = "") -> orchestrator_service_pb2.ListJobsResponse:
    return orchestrator_service_pb2.ListJobsResponse(
        jobs=[wire.job(name) for name in names], next_page_token=token
    )


async def test_pages_are_fetched_as_they_are_read(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """The iterator goes on over pages, also over an empty one, and passes the filter on."""
    server.on("ListJobs", _page("ab", "p2"), _page("", "p3"), _page("c"))

    where = JobFilter((JobState.QUEUED,), "s1")
    names = [job.job_id async for job in client.list_jobs(where)]

    assert names == ["a", "b", "c"]
    requests = [call.request for call in server.made("ListJobs")]
    assert [request.page_token for request in requests] == ["", "p2", "p3"]
    assert {(tuple(r.states), r.session_id) for r in requests} == {
        ((job_pb2.JOB_STATE_QUEUED,), "s1")
    }


async def test_no_page_is_fetched_beyond_the_limit(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """A limit bounds both the jobs and the calls."""
    server.on("ListJobs", _page("ab", "p2"), _page("cd", "p3"))

    names = [job.job_id async for job in client.list_jobs(limit=3)]

    assert names == ["a", "b", "c"]
    assert [call.request.page_size for call in server.made("ListJobs")] == [3, 1]


async def test_a_list_that_repeats_its_page_is_an_error(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """A server's fault does not become an endless loop."""
    server.on("ListJobs", _page("a", "p2"), _page("b", "p2"))

    with pytest.raises(IntegrityError, match="same page"):
        _ = [job async for job in client.list_jobs()]


async def test_one_trace_goes_from_the_client_to_the_server(server: ScriptedServer) -> None:
    """Both calls carry W3C trace context of one trace, from spans without content."""
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.tokens("", ["secret text"]), wire.end("secret text")]])
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    async with AsyncClient(
        server.address, options=ClientOptions(tracer_provider=provider)
    ) as client:
        await client.run(model_id="tiny", prompt="secret prompt").result()

    enqueue, stream = spans.get_finished_spans()
    assert (enqueue.name, stream.name) == ("llamaorch.enqueue", "llamaorch.stream")
    assert (enqueue.kind, stream.kind) == (SpanKind.CLIENT, SpanKind.CLIENT)
    for span, call in zip((enqueue, stream), server.calls, strict=True):
        version, trace_id, span_id, _ = call.metadata["traceparent"].split("-")
        assert (version, int(trace_id, 16), int(span_id, 16)) == (
            "00",
            enqueue.context.trace_id,
            span.context.span_id,
        )
        assert "secret" not in str(span.attributes)


async def test_spans_say_what_was_asked_and_what_came_in_the_words_of_genai(
    server: ScriptedServer,
) -> None:
    """Any backend that knows the conventions shows a job like a call of any other provider."""
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.tokens("", ["text"]), wire.end("text")]])
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    options = ClientOptions(tracer_provider=provider)

    async with AsyncClient(server.address, options=options) as client:
        await client.run(
            model_id="tiny",
            messages=(ChatMessage("user", "secret prompt"),),
            session_id="s",
            sampling=Sampling(max_tokens=9, temperature=0.5),
        ).result()

    enqueue, stream = (_gen_ai(span) for span in spans.get_finished_spans())
    assert enqueue == {
        "operation.name": "chat",
        "provider.name": "llama-orch",
        "request.model": "tiny",
        "conversation.id": "s",
        "request.max_tokens": 9,
        "request.temperature": 0.5,
    }
    assert stream == {
        "usage.input_tokens": 3,
        "usage.output_tokens": 5,
        "response.finish_reasons": ("eos",),
    }


def _gen_ai(span: ReadableSpan) -> dict[str, object]:
    prefix = "gen_ai."
    return {
        key.removeprefix(prefix): value
        for key, value in (span.attributes or {}).items()
        if key.startswith(prefix)
    }


async def test_the_callers_span_is_the_parent_of_both_calls(server: ScriptedServer) -> None:
    """The caller's trace goes on, and a failure is marked with its reason only."""
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.failed(Failure(grpc.StatusCode.ABORTED, "WORKER_RESET"))]])
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    options = ClientOptions(tracer_provider=provider)

    async with AsyncClient(server.address, options=options) as client:
        span = provider.get_tracer("app").start_as_current_span("app")
        with span as outer, pytest.raises(LlamaOrchError):
            await client.run(JOB).result()

    enqueue, stream, _ = spans.get_finished_spans()
    for span in (enqueue, stream):
        assert span.parent is not None
        assert span.parent.span_id == outer.get_span_context().span_id
    assert stream.status.description == "WORKER_RESET"


async def test_a_client_must_be_open_and_its_arguments_complete(server: ScriptedServer) -> None:
    """Misuse is told before anything is sent."""
    closed = AsyncClient(server.address)

    with pytest.raises(RuntimeError, match="async with"):
        await closed.get_job("job-1")
    async with closed as client:
        with pytest.raises(ValueError, match="not complete"):
            await client.enqueue(prompt="Hi")
        with pytest.raises(ValueError, match="either"):
            await client.enqueue(JOB, model_id="other")
        with pytest.raises(ValueError, match="cannot be sent"):
            await client.enqueue(model_id="m", prompt="p", sampling=Sampling(seed=-1))
        with pytest.raises(ValueError, match="correlation_id"):
            await client.enqueue(JOB, correlation_id="two words")
        with pytest.raises(RuntimeError, match="already open"):
            await client.__aenter__()

    assert server.calls == []
