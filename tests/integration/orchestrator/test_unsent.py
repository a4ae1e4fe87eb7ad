"""A continuation is in the journal when orchestratord ends, and no host has it. LO-304, LO-305."""

import asyncio
from pathlib import Path

import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from tests.integration.orchestrator.calls import all_events, enqueue, kinds, ready_host, text
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import WAIT_S, ScriptedHost, digest, snapshot

DIED = dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED
TEXT = "one two "


async def restarted(
    start_orchestrator: StartOrchestrator, path: Path
) -> tuple[Orchestrator, ScriptedHost, ScriptedHost, str]:
    """A server on the journal of another, the hosts of both attempts, which are away, the job."""
    journal = {"store": {"kind": "sqlite", "path": str(path / "journal.db")}}
    first = await start_orchestrator(**journal)
    old = await ready_host(first)
    sampling = job_pb2.Sampling(max_tokens=5)
    failover = job_pb2.FAILOVER_POLICY_CONTINUE
    receipt = await enqueue(first, failover=failover, sampling=sampling)
    start = await old.start()
    await old.started(start.handle)
    await old.tokens(start.handle, "one ", "two ")
    new = first.host(host_id="host-2")
    await new.register(snapshot("pool-b", host_id="host-2", slots_total=1, slots_free=1))
    await old.fail(start.handle, DIED)
    # It is durable by now. The host takes nothing up.
    assert (await new.start()).attempt == 2
    await first.close()
    second = await start_orchestrator(**journal)
    return (
        second,
        second.host(boot_id=old.boot_id),
        second.host("host-2", new.boot_id),
        receipt.job_id,
    )


async def brings(old: ScriptedHost, job_id: str) -> None:
    """The host of the first attempt has all of its text, and sends it when it is asked."""
    held = dispatch_pb2.HeldAttempt(
        job_id=job_id,
        attempt=1,
        pool_id="pool-a",
        replica_id="pool-a-1",
        next_index=2,
        text_bytes=len(TEXT),
        text_digest=digest(TEXT.encode()),
        ended=dispatch_pb2.AttemptEnded(error=dispatch_pb2.AttemptError(kind=DIED)),
    )
    answer = await old.register(snapshot(replica_id="pool-a-2", slots_free=0), held=(held,))
    (verdict,) = answer.verdicts
    assert verdict.verdict == dispatch_pb2.HELD_VERDICT_ADOPT
    assert (await old.command("cancel")).cancel.handle == verdict.handle
    seek = (await old.command("seek")).seek
    assert (seek.handle, seek.first_index) == (verdict.handle, 0)
    await old.started(verdict.handle)
    await old.tokens(verdict.handle, "one ", "two ")
    await old.fail(verdict.handle, DIED)


async def comes_back(new: ScriptedHost) -> None:
    """The host of the second attempt never had it. Its engine is another by now."""
    await new.register(
        snapshot("pool-b", host_id="host-2", replica_id="pool-b-2", slots_total=1, slots_free=1)
    )


@pytest.mark.parametrize("first", ["old", "new"])
async def test_it_goes_on_from_the_text_that_its_former_host_has(
    start_orchestrator: StartOrchestrator, tmp_path: Path, first: str
) -> None:
    """Whichever host comes back first; readers get one text, and hear of both attempts."""
    server, old, new, job_id = await restarted(start_orchestrator, tmp_path)
    if first == "old":
        bringing = asyncio.create_task(brings(old, job_id))
        while "host-1" not in server.server.runtime.hosts.links:
            await server.server.runtime.next_step()
        await comes_back(new)
    else:
        await comes_back(new)
        bringing = asyncio.create_task(brings(old, job_id))

    start = await new.start()
    await bringing
    await new.started(start.handle)
    new.goes_on(start.handle, TEXT, pieces=2)
    await new.tokens(start.handle, "three")
    await new.finish(start.handle)
    events = await asyncio.wait_for(all_events(server, job_id), WAIT_S)

    assert (start.attempt, start.continue_text, start.sampling.max_tokens) == (3, TEXT, 3)
    assert (start.continue_from.attempt, start.continue_from.text_offset) == (1, len(TEXT))
    assert kinds(events) == ["started", "tokens", "resumed", "tokens", "end"]
    assert text(events) == "one two three"
    resumed = next(event.resumed for event in events if event.HasField("resumed"))
    assert (resumed.attempt, resumed.mode) == (3, events_pb2.RESUME_MODE_CONTINUE)
    assert (await old.command("release")).release.handles == [1]
