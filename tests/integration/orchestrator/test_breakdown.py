"""What a bug in the core does: the process ends instead of going on with half a decision."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from orchestrator_core.core import intake
from orchestrator_core.core.effects import Record
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import StoreTakenError
from tests.integration.orchestrator.calls import enqueue, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator

WAIT_S = 5.0


class TakenStore(MemoryStore):
    """A journal that another orchestrator takes over."""

    taken = False

    async def commit(self, batch: Sequence[Record]) -> None:
        """Writes until then."""
        if self.taken:
            raise StoreTakenError("journal.db was taken over")
        await super().commit(batch)


async def test_an_orchestrator_whose_journal_was_taken_over_ends(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Two that decide about the same jobs are worse than none; who waits is refused. LO-305."""
    store = TakenStore()
    orchestrator = await start_orchestrator(store)
    await ready_host(orchestrator)
    failing = asyncio.create_task(orchestrator.server.wait_failed())
    store.taken = True

    enqueuing = asyncio.create_task(enqueue(orchestrator))
    with pytest.raises(StoreTakenError, match=r"journal\.db"):
        await asyncio.wait_for(failing, WAIT_S)
    await orchestrator.server.stop()

    with pytest.raises(grpc.aio.AioRpcError):
        await enqueuing


async def test_a_step_that_breaks_brings_the_server_down(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told INTERNAL, nothing more is decided, and the server reports the failure."""
    await ready_host(orchestrator)
    failing = asyncio.create_task(orchestrator.server.wait_failed())

    def broken(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(intake, "schedule", broken)
    with pytest.raises(grpc.aio.AioRpcError) as first:
        await enqueue(orchestrator)
    with pytest.raises(KeyError, match="planted"):
        await asyncio.wait_for(failing, WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as second:
        await enqueue(orchestrator)

    assert first.value.code() is second.value.code() is grpc.StatusCode.INTERNAL
    assert "planted" not in (first.value.details() or "")
