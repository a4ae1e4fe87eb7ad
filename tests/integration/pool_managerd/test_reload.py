"""Reloads of a pool with its old or another model, and their way back. OC-CTRL-2003."""

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from tests.integration.pool_managerd.fakes import ScriptedEngine
from tests.integration.pool_managerd.harness import FAST, Options, RunHost
from tests.integration.pool_managerd.supervised import (
    TESTED,
    answers_test,
    fails_test,
    until_reason,
)


async def test_a_reload_that_fails_brings_the_former_model_back(run_host: RunHost) -> None:
    """New model READY, or everything as before; the detail says why. OC-CTRL-2003, ORCH-3038."""

    def prepare(engine: ScriptedEngine, number: int) -> None:
        engine.preload_problem = "other.gguf is damaged" if number == 1 else ""

    # A single failure would halt this pool.
    limits = {**FAST, "storm_failures": 1}
    host = await run_host(Options(prepare=prepare, config={"supervision": limits}))
    first = await host.ready()

    host.orchestrator.send(
        reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="other.gguf", reload_id="r1")
    )
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) and ready.replica_id != first
    )

    newest = host.orchestrator.newest()
    assert newest is not None
    assert newest.reload == snapshot_pb2.PoolReload(
        reload_id="r1",
        state=snapshot_pb2.RELOAD_STATE_ROLLED_BACK,
        detail="other.gguf is damaged",
    )
    assert "other.gguf could not be loaded: other.gguf is damaged" in newest.state_detail
    assert "says so until the next reload: `llorch reload p0 --model REF`" in newest.state_detail
    assert host.model_refs == ["", "other.gguf", ""]

    host.orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", reload_id="r2"))
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) and ready.replica_id != newest.replica_id
    )
    cleared = host.orchestrator.newest()
    assert cleared is not None
    assert cleared.state_detail == ""


async def test_a_reload_with_a_deadline_stops_what_still_runs(run_host: RunHost) -> None:
    """Then, and not before; attempts on the new engine have all the time they need."""
    host = await run_host()
    first = await host.ready()
    await host.start("j1", 1)

    host.orchestrator.send(
        reload=dispatch_pb2.ReloadModel(pool_id="p0", reload_id="r1", timeout_ms=50)
    )
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) and ready.replica_id != first
    )

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED
    newest = host.orchestrator.newest()
    assert newest is not None
    assert newest.reload.state == snapshot_pb2.RELOAD_STATE_DONE


async def test_a_new_model_that_fails_its_self_test_is_rolled_back(run_host: RunHost) -> None:
    """A model that loads and cannot generate is no new model."""

    def prepare(engine: ScriptedEngine, number: int) -> None:
        if number == 1:
            fails_test(engine)
        else:
            answers_test(engine)

    host = await run_host(Options(prepare=prepare, config={"pools": TESTED}))
    first = await host.ready()

    host.orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="other.gguf"))
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) and ready.replica_id != first
    )

    newest = host.orchestrator.newest()
    assert newest is not None
    assert "self-test" in newest.state_detail
    assert host.model_refs == ["", "other.gguf", ""]


async def test_an_engine_that_dies_while_a_reload_waits_comes_back_with_the_new_model(
    run_host: RunHost,
) -> None:
    """The attempt it waited for is over, so nothing is left to wait for."""
    host = await run_host()
    first = await host.ready()
    await host.start("j1", 1)
    host.engine.say("j1", "x")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text)

    host.orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="other.gguf"))
    await until_reason(host.orchestrator, "OPERATOR")
    host.engine.die()
    await host.orchestrator.until(
        lambda: (
            host.model_refs[-1] == "other.gguf"
            and (ready := host.orchestrator.ready())
            and ready.replica_id != first
        )
    )

    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)

    assert host.orchestrator.stored(1).ended[0].HasField("error")


async def test_of_two_reloads_that_wait_the_last_counts(run_host: RunHost) -> None:
    """The pool is loaded once, and open afterwards."""
    host = await run_host()
    await host.ready()
    await host.start("j1", 1)
    host.engine.say("j1", "x")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text)

    for model_ref in ("a.gguf", "b.gguf"):
        reload = dispatch_pb2.ReloadModel(pool_id="p0", model_ref=model_ref)
        host.orchestrator.send(reload=reload)
    await until_reason(host.orchestrator, "OPERATOR")
    host.engine.say("j1", "y", end=True)
    await host.orchestrator.until(
        lambda: host.model_refs[-1] == "b.gguf" and host.orchestrator.ready()
    )

    assert host.model_refs == ["", "b.gguf"]


async def test_a_drain_that_is_asked_for_during_a_reload_stands(run_host: RunHost) -> None:
    """The end of the reload does not open a pool that an operator closed meanwhile."""
    host = await run_host()
    first = await host.ready()
    await host.start("j1", 1)
    host.engine.say("j1", "x")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text)

    host.orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0"))
    draining = dispatch_pb2.SetPoolDraining(pool_id="p0", draining=True)
    host.orchestrator.send(set_draining=draining)
    host.engine.say("j1", "y", end=True)
    await host.orchestrator.until(
        lambda: (
            (newest := host.orchestrator.newest())
            and newest.replica_id != first
            and newest.state == snapshot_pb2.POOL_STATE_DRAINING
        )
    )

    assert not host.orchestrator.ready()
