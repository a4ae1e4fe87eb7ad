"""Text that is not kept here any more is brought from the host that holds it. LO-301."""

import asyncio

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch_client.reader import OutputReader
from tests.integration.orchestrator.calls import (
    WAIT_S,
    all_events,
    enqueue,
    follow,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.resuming import KEPT, PIECES, REPLAY, evicted, refusal, relayed
from tests.integration.orchestrator.scripted_host import ScriptedHost, digest, snapshot


async def test_text_that_was_evicted_here_comes_back_from_its_host(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-301: any offset that the host holds, and what is new waits no longer than for that."""
    orchestrator, host, job_id, handle = await evicted(start_orchestrator)
    live = asyncio.create_task(all_events(orchestrator, job_id))

    first = (await host.command("seek")).seek
    host.goes_on(handle, "", 0)
    for piece in PIECES:
        await host.tokens(handle, piece)
    after = (await host.command("seek")).seek
    host.goes_on(handle, "".join(PIECES), len(PIECES))
    await host.tokens(handle, "end")
    await host.finish(handle)
    events = await live
    late = asyncio.create_task(
        all_events(
            orchestrator,
            job_id,
            events_pb2.ResumePoint(
                attempt=1, text_offset=607, prefix_digest=digest("".join(PIECES).encode()[:607])
            ),
        )
    )
    again = (await host.command("seek")).seek
    host.goes_on(handle, "".join(PIECES[:2]), 2)
    for piece in PIECES[2:]:
        await host.tokens(handle, piece)

    assert (first.first_index, after.first_index) == (0, 40)
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "end"
    assert text(events) == "".join(PIECES) + "end"
    assert again.first_index <= 3
    found = await late
    begin = found[0].tokens.text_offset
    assert begin <= 607
    assert text(found) == ("".join(PIECES) + "end")[begin:]


async def test_after_text_that_came_back_the_rest_follows_at_once(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-301: who was behind need not wait for the engine's next token."""
    # A host that counts as lost would wake the reader too.
    orchestrator, host, job_id, handle = await evicted(
        start_orchestrator, pools={"heartbeat_timeout_ms": 60_000}
    )
    data, whole = b"", "".join(PIECES).encode()

    async def read() -> None:
        nonlocal data
        async for event in follow(orchestrator, job_id):
            if event.HasField("tokens"):
                known = len(data) - event.tokens.text_offset
                data += "".join(event.tokens.pieces).encode()[known:]
            if data == whole:
                return

    reader = asyncio.create_task(read())
    await host.command("seek")
    host.goes_on(handle, "", 0)
    for piece in PIECES:
        await host.tokens(handle, piece)

    await asyncio.wait_for(reader, WAIT_S)
    assert data == whole


async def failed(
    start_orchestrator: StartOrchestrator,
) -> tuple[Orchestrator, ScriptedHost, str, int]:
    """A job whose engine died after more text than is kept here; its host, its id, the handle."""
    orchestrator = await start_orchestrator(jobs=KEPT)
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, failover=job_pb2.FAILOVER_POLICY_FAIL)
    handle = (await host.start()).handle
    await host.started(handle)
    for piece in PIECES:
        await host.tokens(handle, piece)
    await host.fail(handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED)
    await relayed(orchestrator, receipt.job_id, len(PIECES))
    return orchestrator, host, receipt.job_id, handle


async def test_text_of_a_failed_job_comes_back_from_its_host_too(
    start_orchestrator: StartOrchestrator,
) -> None:
    """LO-301: a reader that was slow gets all of the text and then the error, like the others."""
    orchestrator, host, job_id, handle = await failed(start_orchestrator)
    slow = asyncio.create_task(all_events(orchestrator, job_id))

    first = (await host.command("seek")).seek.first_index
    host.goes_on(handle, "", 0)
    for piece in PIECES:
        await host.tokens(handle, piece)
    events = await slow

    assert first == 0
    assert text(events) == "".join(PIECES)
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "error"


async def test_text_of_a_failed_job_that_its_host_has_forgotten_is_not_waited_for(
    start_orchestrator: StartOrchestrator,
) -> None:
    """A run of the host that knows nothing of the attempt cannot be asked."""
    orchestrator, host, job_id, _ = await failed(start_orchestrator)
    await host.close()
    await orchestrator.host().register(snapshot(replica_id="pool-a-2"))

    async with asyncio.timeout(WAIT_S):
        assert (await refusal(orchestrator, job_id))[0] == "RESUME_WINDOW"


async def test_a_host_that_holds_no_more_than_what_is_here_is_not_waited_for(
    start_orchestrator: StartOrchestrator,
) -> None:
    """It sends from the oldest piece that it has: what is missing is gone."""
    orchestrator, host, job_id, handle = await evicted(start_orchestrator)
    refused = asyncio.create_task(refusal(orchestrator, job_id))

    await host.command("seek")
    host.goes_on(handle, "".join(PIECES[:9]), 9)
    await host.tokens(handle, PIECES[9])

    assert (await refused)[0] == "RESUME_WINDOW"


async def test_a_replay_with_other_borders_after_eviction(
    start_orchestrator: StartOrchestrator,
) -> None:
    """More output than is kept, then a perfect replay: the client verifies every byte."""
    orchestrator = await start_orchestrator(jobs={"output_bytes_per_job": 4096})
    host = orchestrator.host()
    await host.register(snapshot("pool-a"), snapshot("pool-b"))
    receipt = await enqueue(orchestrator, failover=REPLAY)
    start = await host.start()
    await host.started(start.handle)
    client = OutputReader(None)

    async def read() -> None:
        async for event in follow(orchestrator, receipt.job_id):
            client.accept(event)

    reading = asyncio.create_task(read())
    for _ in range(10):
        await host.tokens(start.handle, "x" * 1000)
        await asyncio.sleep(0.02)
    await host.fail(start.handle, dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR)
    again = await host.start()
    await host.started(again.handle)
    for _ in range(6):
        await host.tokens(again.handle, "x" * 1700)
    await host.finish(again.handle)
    await asyncio.wait_for(reading, WAIT_S)

    assert again.verify_until.text_offset == 10_000
    assert again.verify_until.prefix_digest == digest(b"x" * 10_000)
    assert (client.ended, client.text_offset) == (True, 10_200)
