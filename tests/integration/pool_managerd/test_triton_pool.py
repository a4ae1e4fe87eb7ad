"""A pool of a Triton server: a model that is dead and called ready, and a server of our own."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from llamaorch.pool.v1 import snapshot_pb2
from pool_managerd.server import PoolManager
from tests.conformance import triton_replay
from tests.conformance.triton_replay import HELLO, Replay, failed, replay_server
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator
from tests.integration.pool_managerd.harness import FAST, make_config

DEAD = "Failed to process the request(s) for model 'm', message: Stub process 'm_0' is not healthy."
ENGINE = {
    "kind": "triton",
    "model": "m",
    "model_id": "x",
    "slots": 1,
    "ctx_max": 100,
    "cancel_settle_ms": 1,
}

RunPool = Callable[[Mapping[str, object]], None]


@pytest.fixture
async def run_pool(orchestrator: FakeOrchestrator) -> AsyncIterator[RunPool]:
    """Starts a pool manager with one pool of this engine."""
    running: list[tuple[PoolManager, asyncio.Task[None]]] = []

    def run(engine: Mapping[str, object]) -> None:
        pools = [{"pool_id": "p0", "engine": {**ENGINE, **engine}}]
        limits = {**FAST, "storm_failures": 1, "health_interval_ms": 60_000}
        manager = PoolManager(make_config(orchestrator.address, pools=pools, supervision=limits))
        running.append((manager, asyncio.create_task(manager.run())))

    yield run
    for manager, task in running:
        manager.stop()
        async with asyncio.timeout(WAIT_S):
            await task


def newest(orchestrator: FakeOrchestrator) -> snapshot_pb2.PoolSnapshot:
    """The pool's newest snapshot."""
    snapshot = orchestrator.newest()
    return snapshot_pb2.PoolSnapshot() if snapshot is None else snapshot


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A server that runs already."""
    async with replay_server() as replay:
        yield replay


async def test_a_dead_model_that_triton_calls_ready_is_found_by_the_self_test(
    orchestrator: FakeOrchestrator, run_pool: RunPool, replay: Replay
) -> None:
    """A restart of the pool gives it no job to lose. ORCH-3049."""
    replay.responses = (failed(DEAD),)

    run_pool({"address": replay.address})
    storm = snapshot_pb2.POOL_STATE_REASON_RESTART_STORM
    await orchestrator.until(lambda: newest(orchestrator).state_reason == storm)

    assert "the self-test failed: generating 2 tokens failed" in newest(orchestrator).state_detail
    assert "Stub process 'm_0' is not healthy" in newest(orchestrator).state_detail
    assert not orchestrator.ready()


async def test_a_triton_server_is_launched_where_the_table_says_so(
    orchestrator: FakeOrchestrator, run_pool: RunPool
) -> None:
    """The address is a free port of ours, and the server ends with the pool manager."""
    launch = {
        "command": [sys.executable, triton_replay.__file__, "{port}"],
        "stop_grace_ms": 1_000,
        "env": {"PYTHONPATH": os.pathsep.join(sys.path)},
    }

    run_pool({"launch": launch})
    await orchestrator.until(lambda: newest(orchestrator).state == snapshot_pb2.POOL_STATE_READY)

    assert newest(orchestrator).engine_version == "2.51.0-replay"


async def test_a_model_that_answers_is_ready(
    orchestrator: FakeOrchestrator, run_pool: RunPool, replay: Replay
) -> None:
    """The same pool, with a model that lives."""
    replay.responses = HELLO

    run_pool({"address": replay.address})

    await orchestrator.until(lambda: newest(orchestrator).state == snapshot_pb2.POOL_STATE_READY)
