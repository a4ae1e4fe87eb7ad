"""GetOverview: who waits, what runs and how far it is, what was decided, what ended."""

import asyncio
from collections.abc import Sequence

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from tests.integration.orchestrator.calls import all_events, enqueue, follow, job, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.stores import FailingStore


async def look(orchestrator: Orchestrator, rows_max: int = 0) -> pb.GetOverviewResponse:
    """One look."""
    return await orchestrator.jobs.GetOverview(pb.GetOverviewRequest(rows_max=rows_max))


def ids(jobs: Sequence[job_pb2.Job]) -> list[str]:
    """Ids, in order."""
    return [told.job_id for told in jobs]


async def test_an_idle_server_shows_both_classes_and_nothing_else(
    orchestrator: Orchestrator,
) -> None:
    """INTERACTIVE comes first, and the room of the queue is told."""
    told = await look(orchestrator)

    assert [(queue.priority, queue.waiting) for queue in told.queues] == [
        (job_pb2.PRIORITY_INTERACTIVE, 0),
        (job_pb2.PRIORITY_BATCH, 0),
    ]
    assert not told.queues[0].HasField("last_predicted_start_ms")
    assert told.queue_capacity == 100
    assert (told.running_total, told.ended_total) == (0, 0)


async def test_waiting_jobs_are_listed_in_the_order_of_offers(orchestrator: Orchestrator) -> None:
    """Each class has its jobs, the next one first, and says when the last is to start."""
    await ready_host(orchestrator, slots_total=1, slots_free=1)
    for number in range(4):
        await enqueue(orchestrator, job_id=f"i{number}")
    for number in range(2):
        await enqueue(orchestrator, job_id=f"b{number}", priority=job_pb2.PRIORITY_BATCH)

    told = await look(orchestrator, rows_max=2)

    interactive, batch = told.queues
    assert (interactive.waiting, ids(interactive.next)) == (3, ["i1", "i2"])
    assert (batch.waiting, ids(batch.next)) == (2, ["b0", "b1"])
    assert [waiting.queue_position for waiting in interactive.next] == [1, 2]
    assert interactive.last_predicted_start_ms > interactive.next[0].predicted_start_ms
    assert ids(told.running) == ["i0"]


async def test_a_running_job_shows_how_far_it_is_of_what_is_expected(
    orchestrator: Orchestrator,
) -> None:
    """Pieces are counted as they arrive, the hint says how many there will be."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, expected_tokens=8)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "a", "b")
    await host.tokens(start.handle, "c")
    async for event in follow(orchestrator, receipt.job_id):
        if event.tokens.first_index + len(event.tokens.pieces) == 3:
            break

    (running,) = (await look(orchestrator)).running

    assert (running.output_pieces, running.expected_tokens) == (3, 8)
    assert running.pool_id == "pool-a"
    assert running.HasField("predicted_end_ms")
    assert (await job(orchestrator, receipt.job_id)).output_pieces == 3


async def test_decisions_and_ends_come_newest_first(orchestrator: Orchestrator) -> None:
    """A finished job keeps its decision in the list, in short; ends are in their order."""
    host = await ready_host(orchestrator)
    for name in ("one", "two"):
        await enqueue(orchestrator, job_id=name)
    first, second = await host.start(), await host.start()
    for start in (second, first):
        await host.started(start.handle)
        await host.finish(start.handle)
        await all_events(orchestrator, start.job_id)

    told = await look(orchestrator)
    short = await look(orchestrator, rows_max=1)

    assert ids(told.ended) == ["one", "two"]
    assert {decision.job_id for decision in told.decisions} == {"one", "two"}
    assert told.decisions[0].decided_at.ToNanoseconds() >= (
        told.decisions[1].decided_at.ToNanoseconds()
    )
    decision = told.decisions[0]
    assert (decision.pool_id, decision.decided_by) == ("pool-a", "only_candidate")
    assert (decision.candidates_total, len(decision.candidates)) == (1, 0)
    assert (ids(short.ended), len(short.decisions), short.ended_total) == (["one"], 1, 2)
    assert not told.ended[0].HasField("output_pieces")


async def test_a_job_that_never_ran_is_among_the_ended_ones(orchestrator: Orchestrator) -> None:
    """Cancelled while it waited: it has no decision, and stands between those that ran by time."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    await enqueue(orchestrator, job_id="ran")
    await enqueue(orchestrator, job_id="gone")
    start = await host.start()
    await orchestrator.jobs.Cancel(pb.CancelRequest(job_id="gone"))
    await host.started(start.handle)
    await host.finish(start.handle)
    await all_events(orchestrator, "ran")

    told = await look(orchestrator)

    assert ids(told.ended) == ["ran", "gone"]
    assert told.ended[1].state == job_pb2.JOB_STATE_CANCELLED
    assert ids_of_decisions(told) == ["ran"]


async def test_a_look_fits_into_a_message_whatever_clients_wrote_on_their_jobs(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Rows are left out where labels are long; the totals count all."""
    orchestrator = await start_orchestrator(queue={"capacity": 1_000})
    await ready_host(orchestrator, slots_total=1, slots_free=1)
    labels = {f"{number:060}": "x" * 256 for number in range(32)}
    await asyncio.gather(
        *(enqueue(orchestrator, labels=labels) for _ in range(201)),
        *(enqueue(orchestrator, labels=labels, priority="PRIORITY_BATCH") for _ in range(210)),
    )
    stop = await asyncio.gather(
        *(
            orchestrator.jobs.Cancel(pb.CancelRequest(job_id=each.job_id))
            for each in (await look(orchestrator, rows_max=200)).queues[1].next
        )
    )

    told = await look(orchestrator, rows_max=200)

    assert told.ByteSize() < 4 << 20
    assert told.ended_total == len(stop) > 10
    assert [queue.waiting for queue in told.queues] == [200, 210 - len(stop)]
    assert all(len(queue.next) > 10 for queue in told.queues)


def ids_of_decisions(told: pb.GetOverviewResponse) -> list[str]:
    """Which jobs the decisions are of."""
    return [decision.job_id for decision in told.decisions]


async def test_what_is_not_durable_is_not_shown_as_ended(
    start_orchestrator: StartOrchestrator,
) -> None:
    """While the journal refuses, the rest is shown and the display is told why."""
    store = FailingStore()
    orchestrator = await start_orchestrator(store)
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    store.broken = True
    await host.finish(start.handle)
    while orchestrator.server.runtime.core.ended_total == 0:
        await orchestrator.server.runtime.next_step()

    told = await look(orchestrator)
    store.broken = False
    await all_events(orchestrator, receipt.job_id)
    later = await look(orchestrator)

    assert (told.store_unavailable, ids(told.ended)) == (True, [])
    assert (later.store_unavailable, ids(later.ended)) == (False, [receipt.job_id])
