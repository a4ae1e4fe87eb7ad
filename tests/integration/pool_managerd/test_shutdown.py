"""How a host stops: in order, within its grace, or at once."""

import asyncio

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from tests.integration.pool_managerd.fakes import WAIT_S
from tests.integration.pool_managerd.harness import Options, RunHost


async def test_a_drain_lets_attempts_finish_and_says_so(run_host: RunHost) -> None:
    """Pools go DRAINING, the attempt ends regularly, its end is read before the stream closes."""
    host = await run_host()
    await host.start("j1", 1)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.started)

    host.manager.drain()
    await host.orchestrator.until(
        lambda: (
            (s := host.orchestrator.newest()) is not None
            and s.state == snapshot_pb2.POOL_STATE_DRAINING
        )
    )
    host.engine.say("j1", "last words", end=True)
    async with asyncio.timeout(WAIT_S):
        await host.task

    assert out.text == "last words"
    assert out.ended[0].finish_reason == job_pb2.FINISH_REASON_EOS
    assert host.orchestrator.sessions[-1].half_closed.is_set()
    assert host.engine.stopped.is_set()
    reasons = {s.state_reason for s in host.orchestrator.snapshots}
    assert snapshot_pb2.POOL_STATE_REASON_SHUTDOWN in reasons


async def test_after_the_grace_attempts_end_with_engine_died(run_host: RunHost) -> None:
    """What does not finish in time is told as such, so that it can run elsewhere."""
    host = await run_host(Options(config={"shutdown_grace_ms": 50}))
    await host.start("j1", 1)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.started)

    host.manager.drain()
    async with asyncio.timeout(WAIT_S):
        await host.task

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED
    assert host.engine.stopped.is_set()


async def test_a_second_request_stops_at_once(run_host: RunHost) -> None:
    """Whoever asks twice does not wait for the grace; nothing is left running."""
    host = await run_host(Options(config={"shutdown_grace_ms": 60_000}))
    await host.start("j1", 1)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).started)
    before = asyncio.all_tasks()

    host.manager.drain()
    host.manager.stop()
    async with asyncio.timeout(WAIT_S):
        await host.task

    assert host.engine.stopped.is_set()
    assert host.engine.open_generations == 0
    left = {task for task in asyncio.all_tasks() - before if "pool_managerd" in repr(task)}
    assert left == set()


async def test_a_host_without_an_orchestrator_can_be_stopped(run_host: RunHost) -> None:
    """Nobody to tell is no reason to stay."""
    host = await run_host()
    await host.orchestrator.stop()

    host.manager.drain()
    async with asyncio.timeout(WAIT_S):
        await host.task

    assert host.engine.stopped.is_set()


async def test_an_attempt_that_lets_go_late_is_told_before_the_host_leaves(
    run_host: RunHost,
) -> None:
    """Else its job would wait for the host to come back, although everybody knows better."""
    host = await run_host(Options(config={"shutdown_grace_ms": 1}))
    await host.start("j1", 1)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.started)
    host.engine.lets_go.clear()

    host.manager.drain()
    async with asyncio.timeout(WAIT_S):
        await host.engine.stopped.wait()
        await asyncio.sleep(0.05)
        host.engine.lets_go.set()
        await host.task

    assert [ended.error.kind for ended in out.ended] == [
        dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED
    ]
