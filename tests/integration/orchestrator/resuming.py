"""Jobs whose output is partly lost, and the hosts that come back with it."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from tests.integration.orchestrator.calls import WAIT_S, all_events, details, enqueue, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import ScriptedHost, digest, snapshot

SETTLE_S = 0.2
KEPT = {"output_bytes_per_job": 4096}
PIECES = [f"{number:03d} " * 50 for number in range(40)]
"""Far more than `KEPT` keeps."""
REPLAY = job_pb2.FAILOVER_POLICY_VERIFIED_REPLAY


async def running(orchestrator: Orchestrator, *pieces: str) -> tuple[ScriptedHost, str, int]:
    """A host that has sent some output of a running job: host, job id, handle."""
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, failover=REPLAY)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, *pieces)
    await asyncio.sleep(SETTLE_S)
    return host, receipt.job_id, start.handle


async def relayed(orchestrator: Orchestrator, job_id: str, pieces: int) -> None:
    """Waits until so much output has arrived."""
    log = orchestrator.server.runtime.relay.log(job_id)
    async with asyncio.timeout(WAIT_S):
        while log.next_index < pieces:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def evicted(
    start_orchestrator: StartOrchestrator, **tables: object
) -> tuple[Orchestrator, ScriptedHost, str, int]:
    """A running job that has told `PIECES`; its host, its id, the handle."""
    orchestrator = await start_orchestrator(jobs=KEPT, **tables)
    host, job_id, handle = await running(orchestrator)
    for piece in PIECES:
        await host.tokens(handle, piece)
    await relayed(orchestrator, job_id, len(PIECES))
    return orchestrator, host, job_id, handle


async def come_back(
    orchestrator: Orchestrator, boot_id: str, job_id: str, first_index: int = 0
) -> tuple[ScriptedHost, int]:
    """The host registers again with the attempt that it holds: host, handle."""
    host = orchestrator.host(boot_id=boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=job_id,
        attempt=1,
        pool_id="pool-a",
        replica_id="pool-a-1",
        first_index=first_index,
        next_index=2,
    )
    registered = await host.register(snapshot(), held=(held,))
    handle = registered.verdicts[0].handle
    await host.started(handle)
    return host, handle


async def refusal(
    orchestrator: Orchestrator, job_id: str, resume: events_pb2.ResumePoint | None = None
) -> tuple[str, str | None]:
    """Reason with which following is refused, and the oldest offset it names."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await all_events(orchestrator, job_id, resume)
    info, _ = details(caught.value)
    return info.reason, info.metadata.get("oldest_offset")


def trimmed(events: list[events_pb2.JobEvent], have: str = "") -> str:
    """What a verifying client has in the end."""
    data = have.encode()
    for batch in (event.tokens for event in events if event.HasField("tokens")):
        raw = "".join(batch.pieces).encode()
        known = len(data) - batch.text_offset
        assert known >= 0
        assert batch.prefix_digest == digest(data[: batch.text_offset])
        assert raw[:known] == data[batch.text_offset :][: len(raw)]
        data += raw[known:]
    return data.decode()
