"""Exchange over real sockets: many jobs on one stream. LO-306."""

import asyncio
from collections import Counter

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from tests.integration.orchestrator.calls import all_events, job, ready_host, spec
from tests.integration.orchestrator.calls import enqueue as enqueue_alone
from tests.integration.orchestrator.calls import text as text_of
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.exchange_plays import expected, play, reason
from tests.integration.orchestrator.exchange_stream import Stream, cancelled_state
from tests.integration.orchestrator.scripted_host import digest


async def test_hundreds_of_jobs_share_one_stream(start_orchestrator: StartOrchestrator) -> None:
    """Each gets its own events in order, its outcome once and last; messages are shared."""
    jobs, pieces = 300, 8
    orchestrator = await start_orchestrator(queue={"capacity": 1_000})
    host = await ready_host(orchestrator, slots_total=jobs, slots_free=jobs)
    stream = Stream(orchestrator)
    asked = pb.ExchangeEnqueue(spec=spec(), subscribe=True)
    ids = [await stream.send(enqueue=asked) for _ in range(jobs)]
    playing = asyncio.create_task(play(host, jobs, pieces))
    results = [await stream.result(number) for number in ids]
    await playing

    await stream.ended(*(result.handle for result in results))
    code = await stream.close()

    assert code is grpc.StatusCode.OK
    assert len({result.handle for result in results}) == jobs
    for result in results:
        kinds = stream.kinds(result.handle)
        assert kinds == ["started", *["tokens"] * (len(kinds) - 2), "end"]
        assert stream.text(result.handle) == expected(result.enqueued.job_id, pieces)
    assert stream.messages < jobs * pieces


async def test_an_error_of_one_request_is_its_result_alone(orchestrator: Orchestrator) -> None:
    """Bad fields, unknown jobs and handles do not end the stream or touch other jobs."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    followed = await stream.enqueue()
    start = await host.start()

    bad = await stream.enqueue(model_id="")
    unknown = await stream.ask(cancel=pb.ExchangeCancel(job_id="nobody"))
    missing = await stream.ask(subscribe=pb.ExchangeSubscribe(job_id="nobody"))
    long = await stream.ask(subscribe=pb.ExchangeSubscribe(job_id="x" * 129))
    beyond = await stream.ask(
        subscribe=pb.ExchangeSubscribe(
            job_id=followed.enqueued.job_id,
            resume_from=events_pb2.ResumePoint(attempt=1, text_offset=0, prefix_digest=1),
        )
    )
    foreign = await stream.ack(handles=[9], text_offsets=[1])
    uneven = await stream.ack(handles=[followed.handle], text_offsets=[1, 2])
    early = await stream.ack(handles=[followed.handle], text_offsets=[1])
    not_yet = await stream.ack(final_handles=[followed.handle])
    stranger = await stream.ask(unsubscribe=pb.ExchangeUnsubscribe(handle=77))
    nothing = await stream.ask()
    await host.started(start.handle)
    await host.tokens(start.handle, "fine")
    await host.finish(start.handle)
    await stream.ended(followed.handle)

    refused = [bad, long, foreign, uneven, early, not_yet, stranger, nothing]
    assert [reason(result.error) for result in refused] == ["INVALID_PARAMS"] * len(refused)
    assert [reason(result.error) for result in (unknown, missing)] == ["NOT_FOUND"] * 2
    assert reason(beyond.error) == "RESUME_WINDOW"
    assert stream.text(followed.handle) == "fine"
    assert await stream.close() is grpc.StatusCode.OK


async def test_a_request_without_correlation_id_is_told_so(orchestrator: Orchestrator) -> None:
    """Only acknowledgements and unsubscribing may go without a result; errors come all the same."""
    stream = Stream(orchestrator)

    await stream.send(0, ack=pb.ExchangeAck())
    await stream.send(0, cancel=pb.ExchangeCancel(job_id="x"))
    await stream.until(lambda: bool(stream.results[0]))

    (result,) = stream.results[0]
    assert reason(result.error) == "INVALID_PARAMS"
    assert "correlation_id" in result.error.message


async def test_a_job_without_credit_stops_alone(orchestrator: Orchestrator) -> None:
    """Its output waits in the relay; the other goes on to its end, and credit sets it going."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    stopped = await stream.enqueue(credit_bytes=0)
    other = await stream.enqueue()
    starts = [await host.start(), await host.start()]
    for start in starts:
        await host.started(start.handle)
        for _ in range(3):
            await host.tokens(start.handle, "0123456789")
        await host.finish(start.handle)

    await stream.ended(other.handle)
    without = stream.text(stopped.handle)
    await stream.ack(handles=[stopped.handle], credit_bytes=[11])
    await stream.text_bytes(stopped.handle, 20)
    await stream.ack(handles=[stopped.handle])
    overdrawn = stream.text(stopped.handle)
    await stream.ack(handles=[stopped.handle], credit_bytes=[10])
    await stream.ended(stopped.handle)

    assert without == ""
    assert stream.kinds(stopped.handle)[0] == "started"
    assert overdrawn == "0123456789" * 2
    assert stream.text(stopped.handle) == "0123456789" * 3
    assert len(stream.outcomes(stopped.handle)) == 1


async def test_half_closing_sends_the_rest_without_credit(orchestrator: Orchestrator) -> None:
    """Who closes its side can give no credit any more; everything comes, then OK."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue(credit_bytes=0)
    start = await host.start()
    await host.started(start.handle)
    await stream.until(lambda: bool(stream.events[result.handle]))

    closing = asyncio.create_task(stream.close())
    await host.tokens(start.handle, "the rest")
    await host.finish(start.handle)

    assert await closing is grpc.StatusCode.OK
    assert stream.text(result.handle) == "the rest"
    assert stream.kinds(result.handle)[-1] == "end"


async def test_resume_after_a_cut(orchestrator: Orchestrator) -> None:
    """A new stream goes on from what is held; no byte is lost or doubled, one outcome comes."""
    host = await ready_host(orchestrator)
    first = Stream(orchestrator)
    result = await first.enqueue(job_id="kept")
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "before ")
    await first.text_bytes(result.handle, 7)
    await first.cut()
    await host.tokens(start.handle, "between ")

    second = Stream(orchestrator)
    point = events_pb2.ResumePoint(attempt=1, text_offset=7, prefix_digest=digest(b"before "))
    again = await second.ask(subscribe=pb.ExchangeSubscribe(job_id="kept", resume_from=point))
    await host.tokens(start.handle, "after")
    await host.finish(start.handle)
    await second.ended(again.handle)

    assert again.subscribed_job_id == "kept"
    assert second.text(again.handle) == "between after"
    assert second.kinds(again.handle)[-1] == "end"
    assert await second.close() is grpc.StatusCode.OK


async def test_an_enqueue_that_is_repeated_gives_one_job(orchestrator: Orchestrator) -> None:
    """After a cut the same request_id gets the first answer, and is followed from the beginning."""
    host = await ready_host(orchestrator)
    first = Stream(orchestrator)
    accepted = await first.enqueue(request_id="r-1")
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "once")
    await first.text_bytes(accepted.handle, 4)
    await first.cut()

    second = Stream(orchestrator)
    again = await second.enqueue(request_id="r-1")
    await host.finish(start.handle)
    await second.ended(again.handle)

    assert again.enqueued.duplicate
    assert again.enqueued.job_id == accepted.enqueued.job_id
    assert second.text(again.handle) == "once"


async def test_an_enqueue_that_waits_holds_nothing_up(orchestrator: Orchestrator) -> None:
    """Requests that need no journal are answered while an accept is not durable yet."""
    await ready_host(orchestrator)
    stream = Stream(orchestrator)
    durable = asyncio.Event()
    commit = orchestrator.server._store.commit

    async def slow(records: object) -> None:
        await durable.wait()
        await commit(records)  # type: ignore[arg-type]

    orchestrator.server._store.commit = slow  # type: ignore[method-assign, assignment]
    waiting = await stream.send(enqueue=pb.ExchangeEnqueue(spec=spec()))
    missing = await stream.ask(cancel=pb.ExchangeCancel(job_id="nobody"))
    answered = list(stream.results[waiting])
    durable.set()
    accepted = await stream.result(waiting)

    assert reason(missing.error) == "NOT_FOUND"
    assert answered == []
    assert accepted.enqueued.job_id
    assert accepted.handle == 0


async def test_cancel_ends_the_job_on_its_stream(orchestrator: Orchestrator) -> None:
    """The result is the true state, and the follower gets `end` as CANCELLED once."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue()
    await host.start()

    cancelled = await stream.ask(cancel=pb.ExchangeCancel(job_id=result.enqueued.job_id))
    await stream.ended(result.handle)
    again = await stream.ask(cancel=pb.ExchangeCancel(job_id=result.enqueued.job_id))

    assert cancelled_state(cancelled) == cancelled_state(again) == job_pb2.JOB_STATE_CANCELLED
    (outcome,) = stream.outcomes(result.handle)
    assert outcome.end.state == job_pb2.JOB_STATE_CANCELLED


async def test_unsubscribed_jobs_go_on_unseen(orchestrator: Orchestrator) -> None:
    """After the result nothing of the handle arrives; the job ends as if nobody had listened."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue()
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "seen")
    await stream.text_bytes(result.handle, 4)

    left = await stream.ask(unsubscribe=pb.ExchangeUnsubscribe(handle=result.handle))
    seen = len(stream.events[result.handle])
    await host.tokens(start.handle, "unseen")
    await host.finish(start.handle)
    events = await all_events(orchestrator, result.enqueued.job_id)
    await stream.ack(handles=[result.handle], text_offsets=[4])

    assert left.unsubscribed_job_id == result.enqueued.job_id
    assert text_of(events) == "seenunseen"
    assert len(stream.events[result.handle]) == seen


@pytest.mark.parametrize("observer", [False, True])
async def test_a_cut_counts_every_subscription_as_left(
    start_orchestrator: StartOrchestrator, *, observer: bool
) -> None:
    """Jobs to be cancelled without an audience are, after the grace; observers are none. LO-303."""
    orchestrator = await start_orchestrator(jobs={"disconnect_grace_ms": 300})
    host = await ready_host(orchestrator)
    stream, watcher = Stream(orchestrator), Stream(orchestrator)
    fields = {"on_disconnect": job_pb2.ON_DISCONNECT_CANCEL}
    results = [await stream.enqueue(**fields), await stream.enqueue(**fields)]
    for _ in results:
        await host.started((await host.start()).handle)
    job_ids = [result.enqueued.job_id for result in results]
    asked = pb.ExchangeSubscribe(job_id=job_ids[0], observer=observer)
    handle = (await watcher.ask(subscribe=asked)).handle

    await stream.cut()
    await host.command("cancel")
    if observer:
        await host.command("cancel")
        await watcher.ended(handle)

    states = {(await job(orchestrator, job_id)).state for job_id in job_ids}
    cancelled, running = job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_RUNNING
    assert states == ({cancelled} if observer else {cancelled, running})


async def test_bytes_that_are_no_request_end_the_stream(orchestrator: Orchestrator) -> None:
    """There is no correlation id to answer to."""
    call = orchestrator.channel.stream_stream(
        "/llamaorch.orchestrator.v1.OrchestratorService/Exchange"
    )()
    await call.write(b"\xff\xff")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stopping_server_sends_outcomes_and_then_says_so(
    orchestrator: Orchestrator,
) -> None:
    """What ended during the drain is told before the stream ends with UNAVAILABLE."""
    host = await ready_host(orchestrator)
    stream = Stream(orchestrator)
    result = await stream.enqueue()
    start = await host.start()
    await host.started(start.handle)
    draining = asyncio.create_task(orchestrator.server.drain(10))
    refused = await stream.enqueue()
    while not refused.HasField("error"):
        refused = await stream.enqueue()
    await host.tokens(start.handle, "last words")
    await host.finish(start.handle)
    drained = await draining

    await orchestrator.server.stop()
    assert stream._reader is not None
    await stream._reader

    assert drained
    assert reason(refused.error) == "POOL_UNAVAILABLE"
    assert stream.text(result.handle) == "last words"
    assert len(stream.outcomes(result.handle)) == 1
    assert stream.error is not None
    assert stream.error.code() is grpc.StatusCode.UNAVAILABLE
    assert "connect again" in (stream.error.details() or "")


async def test_waiting_jobs_are_told_their_place(orchestrator: Orchestrator) -> None:
    """`queued` comes to who subscribes while the job waits, and again only when it changed."""
    stream = Stream(orchestrator)
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    running = await stream.enqueue()
    ahead = (await enqueue_alone(orchestrator)).job_id
    waiting = (await enqueue_alone(orchestrator)).job_id
    start = await host.start()

    handle = (await stream.ask(subscribe=pb.ExchangeSubscribe(job_id=waiting))).handle
    await stream.until(lambda: bool(stream.events[handle]))
    await stream.ask(cancel=pb.ExchangeCancel(job_id=ahead))
    await stream.until(lambda: len(stream.events[handle]) > 1)
    await host.started(start.handle)
    await host.finish(start.handle)
    await host.started((await host.start()).handle)
    await stream.until(lambda: "started" in stream.kinds(handle))

    places = [e.queued.queue_position for e in stream.events[handle] if e.HasField("queued")]
    assert (places[0], places[-1]) == (2, 1)
    assert Counter(stream.kinds(running.handle))["end"] == 1
