"""The client library's exchange against a real orchestratord, through cuts. LO-306, LO-301."""

import asyncio

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    End,
    ExchangeOptions,
    Failed,
    InvalidParamsError,
    JobFailedError,
    LlamaOrchError,
    NotFoundError,
    RejectedError,
    ResumePoint,
    RetryOptions,
    Started,
    Tokens,
    UnavailableError,
)
from tests.integration.orchestrator.calls import job as look_up
from tests.integration.orchestrator.calls import ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.exchange_jobs import WAIT_S, begin, exchange, until


async def test_jobs_are_given_and_followed(orchestrator: Orchestrator) -> None:
    """Typed events in order, verified text, one outcome, receipt and result as on a stream."""
    host = await ready_host(orchestrator)
    kept = ClientOptions(exchange=ExchangeOptions(acknowledge=False))
    async with exchange(orchestrator.server.address, kept) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        handle = await begin(host, "Hello ", "wörld")
        await host.finish(handle)
        events = [event async for event in job]
        again = await opened.subscribe(job.job_id)
        whole = await again.result()
        rest = await opened.subscribe(job.job_id, ResumePoint(1, "Hello "))
        part = await rest.result()

    assert isinstance(events[0], Started)
    assert "".join(e.text for e in events if isinstance(e, Tokens)) == "Hello wörld"
    assert isinstance(events[-1], End)
    assert job.receipt is not None
    assert job.receipt.job_id == job.job_id
    assert whole.text == part.text == "Hello wörld"


async def test_errors_are_those_of_the_other_calls(orchestrator: Orchestrator) -> None:
    """Each request raises its own error; the exchange goes on."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        with pytest.raises(InvalidParamsError) as wrong:
            await opened.enqueue(model_id="", prompt="Hi")
        with pytest.raises(NotFoundError):
            await opened.subscribe("nobody")
        with pytest.raises(NotFoundError):
            await opened.cancel("nobody")
        with pytest.raises(ValueError, match="not complete"):
            await opened.enqueue()
        receipt = await opened.enqueue(model_id="tiny", prompt="Hi")
        await host.start()
        cancelled = await opened.cancel(receipt.job_id)

    assert wrong.value.violations[0].field == "spec.model_id"
    assert cancelled.state.value == "CANCELLED"


@pytest.mark.parametrize("as_event", [False, True])
async def test_a_failed_job_raises_or_is_an_event(
    orchestrator: Orchestrator, *, as_event: bool
) -> None:
    """As `failures_as_events` says."""
    async with exchange(orchestrator.server.address) as opened:
        host = await ready_host(orchestrator, slots_total=1, slots_free=1)
        await opened.run(model_id="tiny", prompt="holds the slot")
        await host.start()
        job = await opened.run(
            model_id="tiny", prompt="waits", queue_timeout_ms=50, failures_as_events=as_event
        )

        if as_event:
            failed = await until(job, Failed)
            assert isinstance(failed, Failed)
            assert failed.error.reason == "DEADLINE"
        else:
            with pytest.raises(JobFailedError) as caught:
                await job.result()
            assert (caught.value.reason, caught.value.job_id) == ("DEADLINE", job.job_id)


async def test_a_job_that_is_not_read_stops_alone(orchestrator: Orchestrator) -> None:
    """Its output waits at the server; reading it gives credit and brings all of it."""
    host = await ready_host(orchestrator)
    options = ClientOptions(exchange=ExchangeOptions(credit_bytes=100))
    async with exchange(orchestrator.server.address, options) as opened:
        slow = await opened.run(model_id="tiny", prompt="slow")
        fast = await opened.run(model_id="tiny", prompt="fast")
        pieces = [f"{number:09d} " for number in range(100)]
        first = await begin(host, *pieces)
        second = await begin(host, *pieces)
        await host.finish(first)
        await host.finish(second)
        done = await asyncio.wait_for(fast.result(), WAIT_S)
        unread = slow.text_offset
        late = await asyncio.wait_for(slow.result(), WAIT_S)

    assert unread <= 100 + 10
    assert done.text == late.text == "".join(pieces)


async def test_what_was_read_to_the_end_is_released(orchestrator: Orchestrator) -> None:
    """Leaving the exchange sends the final acknowledgements that are due."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        handle = await begin(host, "all of it")
        await host.finish(handle)
        await job.result()

    release = (await host.command("release")).release
    assert list(release.handles) == [handle]


async def test_without_acknowledgements_everything_is_kept(orchestrator: Orchestrator) -> None:
    """Another process may then read the job from its beginning."""
    host = await ready_host(orchestrator)
    options = ClientOptions(exchange=ExchangeOptions(acknowledge=False, credit_bytes=10))
    async with exchange(orchestrator.server.address, options) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        handle = await begin(host, *["0123456789"] * 10)
        await host.finish(handle)
        await job.result()
        again = await opened.subscribe(job.job_id)
        whole = await again.result()

    assert whole.text == "0123456789" * 10


async def test_closing_a_job_lets_it_run_on(orchestrator: Orchestrator) -> None:
    """Its events are no longer wanted; others are not touched."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        left = await opened.run(model_id="tiny", prompt="left")
        kept = await opened.run(model_id="tiny", prompt="kept")
        first, second = await begin(host, "a"), await begin(host, "b")
        await until(left, Tokens)
        await left.aclose()
        assert [event async for event in left] == []
        for handle in (first, second):
            await host.finish(handle)
        result = await kept.result()

    state = (await look_up(orchestrator, left.job_id)).state
    assert result.text == "b"
    assert state == 4  # FINISHED


async def test_closing_the_client_tells_who_still_waits(orchestrator: Orchestrator) -> None:
    """Nobody is left waiting for events that cannot come."""
    await ready_host(orchestrator)
    async with AsyncClient(str(orchestrator.server.address)) as client:
        async with client.exchange() as opened:
            job = await opened.run(model_id="tiny", prompt="Hi")
            waiting = asyncio.create_task(job.result())
            await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="closed"):
            await asyncio.wait_for(waiting, WAIT_S)
        with pytest.raises(RuntimeError, match="not open"):
            await opened.cancel(job.job_id)


async def test_a_rejection_is_retried_as_the_server_says(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Within the bounds of `RetryOptions`; without retries it is raised at once."""
    orchestrator = await start_orchestrator(queue={"capacity": 1})
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    at_once = ClientOptions(retry=RetryOptions(retry_rejected=False))
    async with exchange(orchestrator.server.address, at_once) as opened:
        await opened.enqueue(model_id="tiny", prompt="runs")
        await host.start()
        await opened.enqueue(model_id="tiny", prompt="waits")
        with pytest.raises(RejectedError) as caught:
            await opened.enqueue(model_id="tiny", prompt="too many")

    assert caught.value.retry_after_ms is not None


async def test_a_request_that_is_too_large_ends_no_other_job(orchestrator: Orchestrator) -> None:
    """The stream would end for it, by what gRPC does with such a message."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        with pytest.raises(InvalidParamsError, match="put a long input as an artifact"):
            await opened.run(model_id="tiny", prompt="x" * (4 << 20))
        await host.finish(await begin(host, "whole"))
        result = await job.result()

    assert result.text == "whole"
    assert opened.resumes == 0


async def test_a_result_that_took_too_long_is_whole_later(orchestrator: Orchestrator) -> None:
    """What came before the timeout is part of it."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        handle = await begin(host, "first ")
        waiting = asyncio.ensure_future(job.result())
        # All that was sent before its result.
        await opened.enqueue(model_id="tiny", prompt="another")
        waiting.cancel()
        await asyncio.wait([waiting])
        await host.tokens(handle, "second")
        await host.finish(handle)
        result = await job.result()

    assert result.text == "first second"


async def test_a_close_that_is_cancelled_leaves_no_task(orchestrator: Orchestrator) -> None:
    """The acknowledgement that it waits for may take a while."""
    host = await ready_host(orchestrator)
    async with exchange(orchestrator.server.address) as opened:
        job = await opened.run(model_id="tiny", prompt="Hi")
        await host.finish(await begin(host, "all"))

        async def read_and_close() -> None:
            await job.result()
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await opened.close()

        closing = asyncio.create_task(read_and_close())
        await asyncio.wait([closing])
        left = [task.get_name() for task in asyncio.all_tasks()]

    assert closing.cancelled()
    assert "exchange" not in left


async def test_the_trace_of_an_enqueue_goes_on_in_the_job(orchestrator: Orchestrator) -> None:
    """Each request on the stream carries its own trace context."""
    await ready_host(orchestrator)
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with exchange(
        orchestrator.server.address, ClientOptions(tracer_provider=provider)
    ) as opened:
        receipts = [await opened.enqueue(model_id="tiny", prompt="Hi") for _ in range(2)]

    told = [(await look_up(orchestrator, receipt.job_id)).trace_id for receipt in receipts]
    made = [f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.context]
    assert told == made
    assert len(set(made)) == 2


async def test_a_server_without_exchange_is_not_asked_again() -> None:
    """What no repetition can help is told at once."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with exchange(f"127.0.0.1:{port}") as opened:
            with pytest.raises(LlamaOrchError) as caught:
                await asyncio.wait_for(opened.cancel("x"), WAIT_S)
    finally:
        await server.stop(None)

    assert caught.value.code == "UNIMPLEMENTED"
    assert opened.resumes == 1
