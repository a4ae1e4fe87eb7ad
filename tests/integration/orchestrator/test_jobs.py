"""Jobs over real gRPC, with a scripted host at the other end."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import (
    events_pb2,
    job_pb2,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
)
from llamaorch.pool.v1 import snapshot_pb2
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    follow,
    job,
    kinds,
    ready_host,
    spec,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import digest, snapshot


async def test_job_runs_from_enqueue_to_end(orchestrator: Orchestrator) -> None:
    """started, tokens and end arrive in order with the text that the pool generated."""
    host = await ready_host(orchestrator)

    receipt = await enqueue(orchestrator, sampling=job_pb2.Sampling(seed=7))
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "Hel", "lo")
    await host.tokens(start.handle, " wörld")
    await host.finish(start.handle)
    events = await all_events(orchestrator, receipt.job_id)

    assert kinds(events) == ["started", "tokens", "tokens", "end"]
    assert text(events) == "Hello wörld"
    assert receipt.seed == start.sampling.seed == 7
    assert start.input.text == "hello"
    end = events[-1].end
    assert end.finish_reason == job_pb2.FINISH_REASON_EOS
    assert end.usage.tokens_out == 3
    assert end.text_digest == digest("Hello wörld".encode())
    started = events[0].started
    assert (started.pool_id, started.attempt, started.queue_position) == ("pool-a", 1, 1)


async def test_two_followers_and_a_late_one_get_the_same_text(orchestrator: Orchestrator) -> None:
    """Any number of readers follow one job, also after it ended."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    early = [asyncio.create_task(all_events(orchestrator, receipt.job_id)) for _ in range(2)]
    await host.started(start.handle)
    await host.tokens(start.handle, "a", "b")
    await host.finish(start.handle)

    late = await all_events(orchestrator, receipt.job_id)

    texts = [text(await task) for task in early]
    assert [*texts, text(late)] == ["ab"] * 3


async def test_resume_gives_the_rest_and_a_wrong_digest_is_refused(
    orchestrator: Orchestrator,
) -> None:
    """A reader goes on at its offset; one whose text differs is told RESUME_WINDOW."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    for piece in ("one ", "two ", "three"):
        await host.tokens(start.handle, piece)
    await host.finish(start.handle)
    await all_events(orchestrator, receipt.job_id)

    point = events_pb2.ResumePoint(attempt=1, text_offset=4, prefix_digest=digest(b"one "))
    rest = await all_events(orchestrator, receipt.job_id, point)
    point.prefix_digest ^= 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await all_events(orchestrator, receipt.job_id, point)

    assert text(rest) == "two three"
    assert rest[0].tokens.prefix_digest == digest(b"one ")
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert details(caught.value)[0].reason == "RESUME_WINDOW"


async def test_cancel_of_a_running_job_ends_its_stream_and_stops_the_pool(
    orchestrator: Orchestrator,
) -> None:
    """The stream ends with CANCELLED, nothing follows, and the pool is told."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "partial")
    stream = follow(orchestrator, receipt.job_id)
    async for event in stream:
        if event.WhichOneof("event") == "tokens":
            break

    request = orchestrator_service_pb2.CancelRequest(job_id=receipt.job_id)
    answer = await orchestrator.jobs.Cancel(request)
    cancel = (await host.command("cancel")).cancel
    await host.tokens(start.handle, " too late")
    await host.finish(start.handle, job_pb2.FINISH_REASON_CANCELLED)
    rest = [event async for event in stream]
    again = await orchestrator.jobs.Cancel(request)

    assert answer.job.state == again.job.state == job_pb2.JOB_STATE_CANCELLED
    assert cancel.handle == start.handle
    assert kinds(rest) == ["end"]
    assert rest[-1].end.finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert rest[-1].end.text_bytes == len("partial")
    assert text(await all_events(orchestrator, receipt.job_id)) == "partial"


async def test_cancel_and_end_at_once_from_another_connection(orchestrator: Orchestrator) -> None:
    """Whichever comes first wins, and answer, stream and GetJob tell the same."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    address = str(orchestrator.server.address)
    async with grpc.aio.insecure_channel(address) as channel:
        other = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
        for _ in range(20):
            receipt = await enqueue(orchestrator)
            following = asyncio.create_task(all_events(orchestrator, receipt.job_id))
            start = await host.start()
            await host.started(start.handle)
            await host.tokens(start.handle, "whole")
            request = orchestrator_service_pb2.CancelRequest(job_id=receipt.job_id)

            answer, _ = await asyncio.gather(other.Cancel(request), host.finish(start.handle))
            events = await following

            state = answer.job.state
            assert state in {job_pb2.JOB_STATE_FINISHED, job_pb2.JOB_STATE_CANCELLED}
            assert kinds(events)[-1] == "end"
            assert events[-1].end.state == state
            assert (await job(orchestrator, receipt.job_id)).state == state
            assert events[-1].end.text_bytes == len(text(events))
            if state == job_pb2.JOB_STATE_CANCELLED:
                # Sent although the end was on its way: the next job has the slot all the same.
                await host.command("cancel")


async def test_slot_of_a_cancelled_job_is_free_only_when_the_pool_confirms(
    orchestrator: Orchestrator,
) -> None:
    """The next job waits for the confirmation: slots are never shared."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    first = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    second = await enqueue(orchestrator)
    await orchestrator.jobs.Cancel(orchestrator_service_pb2.CancelRequest(job_id=first.job_id))
    await host.command("cancel")
    waiting = await job(orchestrator, second.job_id)

    await host.finish(start.handle, job_pb2.FINISH_REASON_CANCELLED)
    next_start = await host.start()

    assert waiting.state == job_pb2.JOB_STATE_QUEUED
    assert next_start.job_id == second.job_id


async def test_queue_full_is_resource_exhausted_with_a_computed_delay(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The refusal names the policy and when to come back, in details and as pushback."""
    orchestrator = await start_orchestrator(queue={"capacity": 1, "policy": "reject"})
    await ready_host(orchestrator, slots_total=1, slots_free=1)
    for _ in range(2):
        await enqueue(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator)

    info, others = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (info.reason, info.domain) == ("ADMISSION_REJECT", "llamaorch.dev")
    assert info.metadata["policy_label"] == "reject"
    assert {"QuotaFailure", "RetryInfo"} <= others.keys()
    wait = others["RetryInfo"].retry_delay.ToMilliseconds()  # type: ignore[attr-defined]
    trailing = dict(caught.value.trailing_metadata() or ())
    assert int(trailing["grpc-retry-pushback-ms"]) == wait == int(info.metadata["retry_after_ms"])
    assert wait > 0


async def test_dropped_job_is_told_why(start_orchestrator: StartOrchestrator) -> None:
    """Under drop-lru the victim's stream ends with QUEUE_FULL_DROP_LRU and without `started`."""
    orchestrator = await start_orchestrator(queue={"capacity": 1, "policy": "drop-lru"})
    await ready_host(orchestrator, slots_total=1, slots_free=1)
    await enqueue(orchestrator)
    victim = await enqueue(orchestrator)
    following = asyncio.create_task(all_events(orchestrator, victim.job_id))

    await enqueue(orchestrator)

    events = await following
    assert kinds(events) == ["error"]
    assert events[-1].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_bad_request_names_every_bad_field(orchestrator: Orchestrator) -> None:
    """All violations come at once, each with its path."""
    bad = job_pb2.JobSpec(sampling=job_pb2.Sampling(top_p=2.0, temperature=-1.0))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.jobs.Enqueue(orchestrator_service_pb2.EnqueueRequest(spec=bad))

    info, others = details(caught.value)
    violations = others["BadRequest"].field_violations  # type: ignore[attr-defined]
    fields = {violation.field for violation in violations}
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.reason == "INVALID_PARAMS"
    assert {"spec.model_id", "spec.input", "spec.sampling.top_p"} <= fields
    assert "spec.sampling.temperature" in fields


async def test_undecodable_request_is_invalid_params(orchestrator: Orchestrator) -> None:
    """Bytes that are no message get a typed answer, not UNKNOWN."""
    call = orchestrator.channel.unary_unary(
        "/llamaorch.orchestrator.v1.OrchestratorService/Enqueue"
    )

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0].reason == "INVALID_PARAMS"


async def test_unknown_job_is_not_found_on_every_call(orchestrator: Orchestrator) -> None:
    """Each call that names a job says NOT_FOUND with the id."""
    calls = (
        orchestrator.jobs.GetJob(orchestrator_service_pb2.GetJobRequest(job_id="nope")),
        orchestrator.jobs.Cancel(orchestrator_service_pb2.CancelRequest(job_id="nope")),
        orchestrator.jobs.ExplainJob(orchestrator_service_pb2.ExplainJobRequest(job_id="nope")),
        all_events(orchestrator, "nope"),
    )

    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        info, others = details(caught.value)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert info.reason == "NOT_FOUND"
        assert others["ResourceInfo"].resource_name == "nope"  # type: ignore[attr-defined]


async def test_repeated_request_gets_the_first_answer(orchestrator: Orchestrator) -> None:
    """The same request id and body is the same job; another body is ALREADY_EXISTS."""
    await ready_host(orchestrator)
    first = await enqueue(orchestrator, request_id="r1")

    second = await enqueue(orchestrator, request_id="r1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator, request_id="r1", labels={"other": "body"})

    assert (second.job_id, second.seed) == (first.job_id, first.seed)
    assert second.duplicate
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_incompatible_job_is_refused_with_every_shortfall(
    orchestrator: Orchestrator,
) -> None:
    """A job that no pool can ever serve is not queued; the answer says what each pool lacks."""
    await ready_host(orchestrator)
    requirements = job_pb2.Requirements(min_vram_bytes=1 << 40, min_compute_cap="9.0")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator, requirements=requirements)

    info, others = details(caught.value)
    described = str(others["PreconditionFailure"])
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info.reason == "INCOMPATIBLE_DEVICE_MASK"
    assert "pool-a" in described
    assert str(1 << 40) in described
    assert "9.0" in described


async def test_no_pool_at_all_is_unavailable_with_a_delay(orchestrator: Orchestrator) -> None:
    """Before any host has registered the answer is POOL_UNAVAILABLE and retriable."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator)

    info, others = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (info.reason, info.metadata["retriable"]) == ("POOL_UNAVAILABLE", "true")
    assert "RetryInfo" in others


async def test_explain_tells_candidates_exclusions_and_trace(orchestrator: Orchestrator) -> None:
    """The decision names the winner, what decided, who was excluded and why."""
    host = orchestrator.host()
    await host.register(
        snapshot("fast", perf_tokens_per_s=200.0),
        snapshot("slow", perf_tokens_per_s=10.0),
        snapshot("down", state=snapshot_pb2.POOL_STATE_UNREADY),
    )
    receipt = await enqueue(orchestrator)
    start = await host.start()

    request = orchestrator_service_pb2.ExplainJobRequest(job_id=receipt.job_id)
    answer = await orchestrator.jobs.ExplainJob(request)

    decision = answer.decisions[0]
    assert start.pool_id == decision.pool_id == "fast"
    assert decision.decided_by == "score"
    assert [c.pool_id for c in decision.candidates] == ["fast", "slow"]
    assert len(answer.trace_id) == 32
    assert start.traceparent.split("-")[1] == answer.trace_id


async def test_jobs_are_listed_newest_first_in_pages(orchestrator: Orchestrator) -> None:
    """Pages join without a gap, and filters apply."""
    await ready_host(orchestrator)
    ids = [(await enqueue(orchestrator)).job_id for _ in range(5)]
    listed: list[str] = []
    token = ""
    while True:
        request = orchestrator_service_pb2.ListJobsRequest(page_size=2, page_token=token)
        page = await orchestrator.jobs.ListJobs(request)
        listed += [entry.job_id for entry in page.jobs]
        token = page.next_page_token
        if not token:
            break
    queued = orchestrator_service_pb2.ListJobsRequest(states=[job_pb2.JOB_STATE_QUEUED])

    assert listed == ids[::-1]
    assert len((await orchestrator.jobs.ListJobs(queued)).jobs) == 3


async def test_jobs_are_listed_by_how_their_ids_begin_or_end(orchestrator: Orchestrator) -> None:
    """Of thousands a client need not see all to find one; what no id can be is refused."""
    await ready_host(orchestrator)
    for job_id in ("ab-12", "ab-34", "cd-12"):
        await enqueue(orchestrator, job_id=job_id)

    async def listed(part: str) -> list[str]:
        request = orchestrator_service_pb2.ListJobsRequest(id_part=part)
        return [entry.job_id for entry in (await orchestrator.jobs.ListJobs(request)).jobs]

    found = {part: await listed(part) for part in ("ab-", "AB-3", "12", "b-1", "")}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await listed("x" * 129)

    assert found["ab-"] == ["ab-34", "ab-12"]
    assert found["AB-3"] == ["ab-34"]
    assert found["12"] == ["cd-12", "ab-12"]
    assert (found["b-1"], len(found[""])) == ([], 3)
    assert details(refused.value)[0].reason == "INVALID_PARAMS"


async def test_correlation_id_is_returned(orchestrator: Orchestrator) -> None:
    """The caller's id comes back; without one the server makes one."""
    request = orchestrator_service_pb2.GetCapabilitiesRequest()
    given = orchestrator.jobs.GetCapabilities(request, metadata=(("x-correlation-id", "abc"),))
    made = orchestrator.jobs.GetCapabilities(request)

    returned = dict(await given.initial_metadata())
    invented = dict(await made.initial_metadata())

    assert returned["x-correlation-id"] == "abc"
    assert len(str(invented["x-correlation-id"])) == 32


async def test_an_invented_correlation_id_is_that_of_the_job(orchestrator: Orchestrator) -> None:
    """Who gave none finds the log lines of the job by the one that came back. HME-030."""
    await ready_host(orchestrator)
    call = orchestrator.jobs.Enqueue(orchestrator_service_pb2.EnqueueRequest(spec=spec()))

    invented = dict(await call.initial_metadata())
    accepted = await call

    found = orchestrator.server.runtime.job(accepted.job_id)
    assert found.spec.correlation_id == invented["x-correlation-id"]
