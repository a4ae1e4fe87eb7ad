"""Pools that an operator drains or loads again."""

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from tests.integration.pool_managerd.harness import Options, RunHost


async def test_a_drain_takes_no_work_and_is_taken_back(run_host: RunHost) -> None:
    """DRAINING refuses starts, lets attempts finish, and ends on request. OC-CTRL-2002."""
    host = await run_host(Options(slots=2))
    replica_id = await host.ready()
    await host.start("j1", 1)

    host.orchestrator.send(set_draining=dispatch_pb2.SetPoolDraining(pool_id="p0", draining=True))
    await host.start("j2", 2, replica_id=replica_id)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).refused)
    host.engine.say("j1", "done", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)
    newest = host.orchestrator.newest()
    host.orchestrator.send(set_draining=dispatch_pb2.SetPoolDraining(pool_id="p0", draining=False))
    await host.start("j3", 3, replica_id=replica_id)
    await host.orchestrator.until(lambda: host.orchestrator.stored(3).started)

    reason = host.orchestrator.stored(2).refused[0].reason
    assert reason == dispatch_pb2.REFUSAL_REASON_NOT_READY
    assert newest is not None
    assert newest.state_reason == snapshot_pb2.POOL_STATE_REASON_OPERATOR


async def test_a_drain_that_lasts_too_long_stops_its_attempts(run_host: RunHost) -> None:
    """After the drain's timeout what still runs ends with ENGINE_DIED, to be run elsewhere."""
    host = await run_host()
    await host.start("j1", 1)

    host.orchestrator.send(
        set_draining=dispatch_pb2.SetPoolDraining(pool_id="p0", draining=True, timeout_ms=20)
    )
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED


async def test_reload_starts_a_new_replica_once_idle(run_host: RunHost) -> None:
    """A reload waits for the running attempt, then replaces the engine. OC-CTRL-2003."""
    host = await run_host()
    first = await host.ready()
    await host.start("j1", 1)

    host.orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0"))
    host.engine.say("j1", "done", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.replica_id != first
    )

    ended = host.orchestrator.stored(1).ended[0]
    assert ended.finish_reason == job_pb2.FINISH_REASON_EOS
