"""Clients that go on where they were while the output behind them is lost, late or elsewhere."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.core.records import Record
from orchestrator_core.relay import sides
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import StoreUnavailableError
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    follow,
    job,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.resuming import (
    PIECES,
    SETTLE_S,
    come_back,
    evicted,
    refusal,
    running,
    trimmed,
)
from tests.integration.orchestrator.scripted_host import digest, snapshot

ONE_TWO = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=digest(b"one two "))
ONE_XXX = events_pb2.ResumePoint(attempt=1, text_offset=8, prefix_digest=digest(b"one xxx "))


async def test_resume_within_a_chunk_gives_the_whole_chunk(orchestrator: Orchestrator) -> None:
    """The reader trims by offset; a wrong digest where it can be checked is refused."""
    host, job_id, handle = await running(orchestrator, "one ", "two ", "three")
    await host.finish(handle)
    await all_events(orchestrator, job_id)

    within = events_pb2.ResumePoint(attempt=1, text_offset=6, prefix_digest=digest(b"one tw"))
    rest = await all_events(orchestrator, job_id, within)
    wrong = events_pb2.ResumePoint(attempt=1, text_offset=13, prefix_digest=1)

    assert trimmed(rest, "one tw") == "one two three"
    assert kinds(rest) == ["tokens", "end"]
    assert await refusal(orchestrator, job_id, wrong) == ("RESUME_WINDOW", "0")


async def test_the_outcome_never_comes_without_the_text_before_it(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output that made room for another job's, and that its host does not send, is refused."""
    monkeypatch.setattr(sides, "PATIENCE_S", 0.1)
    orchestrator = await start_orchestrator(
        jobs={"output_bytes_per_job": 4096, "output_bytes_total": 4096},
        pools={"reattach_grace_ms": 200},
    )
    host, job_id, handle = await running(orchestrator, "x" * 3000)
    await host.finish(handle)
    await all_events(orchestrator, job_id)
    await enqueue(orchestrator)
    second = await host.start()
    await host.started(second.handle)
    await host.tokens(second.handle, "y" * 3000)
    await asyncio.sleep(SETTLE_S)

    assert await refusal(orchestrator, job_id) == ("RESUME_WINDOW", "3000")


async def test_who_is_behind_waits_for_the_replay(
    start_orchestrator: StartOrchestrator,
) -> None:
    """What was evicted is gone with its engine, and comes back when it is generated again."""
    orchestrator, host, job_id, handle = await evicted(start_orchestrator)
    await host.fail(handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    late = asyncio.create_task(all_events(orchestrator, job_id))
    await asyncio.sleep(SETTLE_S)
    async with host.reports() as reports:
        await reports.send(snapshot(replica_id="pool-a-2", emitted_frame_seq=host.frame_seq))
    again = await host.start()
    await host.started(again.handle)
    await host.command("release")
    host.goes_on(again.handle, "".join(PIECES), len(PIECES))
    await host.tokens(again.handle, "end")

    assert (await host.command("seek")).seek.first_index == 0
    host.goes_on(again.handle, "", 0)
    for piece in (*PIECES, "end"):
        await host.tokens(again.handle, piece)
    await host.finish(again.handle)
    events = await late

    assert again.verify_until.text_offset == len("".join(PIECES))
    told = [kind for kind in kinds(events) if kind != "tokens"]
    assert told == ["started", "resumed", "end"]
    assert text(events) == "".join(PIECES) + "end"


@pytest.mark.parametrize("resume", [ONE_TWO, ONE_XXX], ids=["same text", "other text"])
async def test_a_reader_ahead_waits_while_the_host_sends_again(
    start_orchestrator: StartOrchestrator, resume: events_pb2.ResumePoint
) -> None:
    """After a restart the text comes back from the host; who is ahead waits and is checked."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    former, job_id, _ = await running(first, "one ", "two ")
    await first.close()
    second = await start_orchestrator(store)
    host, handle = await come_back(second, former.boot_id, job_id)
    await host.tokens(handle, "one ")
    await asyncio.sleep(SETTLE_S)

    reader = asyncio.create_task(all_events(second, job_id, resume))
    await asyncio.sleep(SETTLE_S)
    await host.tokens(handle, "two ")
    await host.tokens(handle, "three")
    await host.finish(handle)

    if resume is ONE_TWO:
        events = await reader
        assert (kinds(events), text(events)) == (["tokens", "end"], "three")
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reader
        assert details(caught.value)[0].reason == "RESUME_WINDOW"


async def test_a_reader_ahead_waits_while_a_replay_generates(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Orchestrator and engine both start anew: the replay catches up with the client."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    _, job_id, _ = await running(first, "one ", "two ", "three ")
    await first.close()
    second = await start_orchestrator(store)
    host = second.host()
    await host.register(snapshot(replica_id="pool-a-2"))
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")
    await asyncio.sleep(SETTLE_S)

    reader = asyncio.create_task(all_events(second, job_id, ONE_TWO))
    await asyncio.sleep(SETTLE_S)
    await host.tokens(start.handle, "two ", "three ", "four")
    await host.finish(start.handle)
    events = await reader

    assert trimmed(events, "one two ") == "one two three four"
    assert kinds(events)[-1] == "end"


async def test_a_host_without_the_beginning_goes_on(
    start_orchestrator: StartOrchestrator,
) -> None:
    """It is taken from the first piece that it holds; no watchdog ends the job."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    former, job_id, _ = await running(first, "one ", "two ")
    await first.close()
    second = await start_orchestrator(store, jobs={"idle_timeout_ms": 1500})
    host, handle = await come_back(second, former.boot_id, job_id, first_index=1)
    # As a host that has evicted "one ".
    host._text[handle], host._pieces[handle] = "one ", 1
    await host.tokens(handle, "two ")

    reader = asyncio.create_task(all_events(second, job_id, ONE_TWO))
    for number in range(10):
        await host.tokens(handle, f"t{number} ")
        await asyncio.sleep(SETTLE_S)
    state = (await job(second, job_id)).state
    await host.finish(handle)
    events = await reader

    assert state == job_pb2.JOB_STATE_RUNNING
    assert trimmed(events, "one two ") == "one two t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 "
    assert kinds(events)[-1] == "end"
    refused = asyncio.create_task(refusal(second, job_id))
    await host.command("seek")
    host.goes_on(handle, "one ", 1)
    await host.tokens(handle, "two ")
    assert await refused == ("RESUME_WINDOW", "4")


async def test_a_follower_hears_that_its_job_is_back_in_the_queue(
    orchestrator: Orchestrator,
) -> None:
    """A refused attempt puts the job back; who follows is told its place, once a second at most."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    seen = Counter[str | None]()

    async def read() -> None:
        async for event in follow(orchestrator, receipt.job_id):
            seen[event.WhichOneof("event")] += 1

    reading = asyncio.create_task(read())
    await asyncio.sleep(SETTLE_S)
    before = seen.total()
    async with host.reports() as reports:
        drained = snapshot(
            slots_total=1, slots_free=0, version=2, state=snapshot_pb2.POOL_STATE_DRAINING
        )
        await reports.send(drained)
        refused = dispatch_pb2.AttemptRefused(
            handle=start.handle, reason=dispatch_pb2.REFUSAL_REASON_NO_SLOT, message="no"
        )
        await host.frame(refused=[refused])
        await asyncio.sleep(1.5)
        for _ in range(20):
            orchestrator.server.runtime.relay.log(receipt.job_id).wake()
            await asyncio.sleep(0)
    state = (await job(orchestrator, receipt.job_id)).state
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)

    assert (before, state) == (0, job_pb2.JOB_STATE_QUEUED)
    assert set(seen) == {"queued"}
    assert seen.total() <= 2


async def test_followers_of_a_forgotten_job_are_told_not_found(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The outcome is known, its text is awaited, and then the retention is over."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host, job_id, handle = await running(first, "one ")
    await host.finish(handle)
    await all_events(first, job_id)
    await first.close()
    second = await start_orchestrator(store, jobs={"retention_ms": 1500})

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await all_events(second, job_id)

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_nothing_is_told_of_a_job_that_is_not_durable(
    start_orchestrator: StartOrchestrator,
) -> None:
    """An accept that cannot be written is taken back; no follower ever saw the job."""
    release = asyncio.Event()

    class Stuck(MemoryStore):
        async def commit(self, batch: Sequence[Record]) -> None:
            await release.wait()
            raise StoreUnavailableError("scripted")

    orchestrator = await start_orchestrator(Stuck())
    await ready_host(orchestrator, state=snapshot_pb2.POOL_STATE_STARTING)
    given = asyncio.create_task(enqueue(orchestrator, job_id="mine"))
    await asyncio.sleep(SETTLE_S)
    reading = asyncio.create_task(all_events(orchestrator, "mine"))
    await asyncio.sleep(SETTLE_S)
    early = reading.done()
    release.set()
    outcome, _ = await asyncio.gather(reading, given, return_exceptions=True)

    assert not early
    assert isinstance(outcome, grpc.aio.AioRpcError)
    assert outcome.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
