"""What a bug in the core does: the process ends instead of going on with half a decision."""

import asyncio

import grpc
import pytest

from orchestrator_core.core import intake
from tests.integration.orchestrator.calls import enqueue, ready_host
from tests.integration.orchestrator.conftest import Orchestrator

WAIT_S = 5.0


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
