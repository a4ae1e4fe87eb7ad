"""What a pool does with an engine that fails: self-test, circuit, storm, reload with rollback.

ORCH-3204.
"""

from pathlib import Path

import pytest

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from pool_managerd.config.problems import ConfigError
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.engines.port import Failure, PreloadError
from pool_managerd.server import PoolManager
from tests.integration.pool_managerd.fakes import FakeOrchestrator, ScriptedEngine
from tests.integration.pool_managerd.harness import FAST, Options, RunHost, make_config
from tests.integration.pool_managerd.supervised import (
    CIRCUIT,
    TESTED,
    answers_test,
    fail_job,
    fails_test,
    until_reason,
)


async def test_ready_comes_after_the_self_test(run_host: RunHost) -> None:
    """A decode and a cancelled generation go before READY; no attempt sees them. ORCH-3049."""
    host = await run_host(Options(prepare=answers_test, config={"pools": TESTED}))

    await host.ready()

    asked = [request.request_id for request in host.engine.requests]
    assert asked == ["self-test-decode", "self-test-cancel"]
    assert host.engine.open_generations == 0


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("failure", "generating 2 tokens failed: engine_error: no kernel image for this device"),
        ("cancel", "a cancelled generation was not stopped"),
        ("silence", "no answer to a prompt of one word within 50 ms"),
        ("version", "the engine does not tell its engine_version"),
    ],
)
async def test_an_engine_that_fails_its_self_test_is_not_ready(
    run_host: RunHost, trouble: str, sentence: str
) -> None:
    """It is a failed preload, named in one sentence. ORCH-3049, ORCH-3002."""

    def prepare(engine: ScriptedEngine, _number: int) -> None:
        if trouble == "failure":
            fails_test(engine)
        elif trouble in ("cancel", "version"):
            answers_test(engine)
        engine.holds_slots = trouble == "cancel"
        if trouble == "version":
            engine.without_version()

    patience_ms = 50 if trouble == "silence" else 60_000
    limits = {**FAST, "storm_failures": 1, "self_test": {"timeout_ms": patience_ms}}
    config = {"pools": TESTED, "supervision": limits}

    host = await run_host(Options(prepare=prepare, config=config))
    snapshot = await until_reason(host.orchestrator, "RESTART_STORM")

    assert snapshot.state_detail.startswith(f"the self-test failed: {sentence}")
    assert not host.orchestrator.ready()
    assert host.engine.stopped.is_set()


async def test_too_many_errors_open_the_circuit_and_a_probe_closes_it(run_host: RunHost) -> None:
    """UNREADY with the last error; after a failed and a passed probe READY again. ORCH-3040."""
    host = await run_host(Options(config={"supervision": {**FAST, "circuit": CIRCUIT}}))
    replica_id = await host.ready()
    await fail_job(host, 1)
    await fail_job(host, 2)

    opened = await until_reason(host.orchestrator, "CIRCUIT_OPEN")
    fails_test(host.engine)
    await host.orchestrator.until(
        lambda: "so did a probe" in host.orchestrator.snapshots[-1].state_detail
    )
    answers_test(host.engine)
    again = await host.ready()

    assert opened.state == snapshot_pb2.POOL_STATE_UNREADY
    assert opened.state_detail == "too many attempts failed; the last: engine_error"
    assert again == replica_id
    assert len(host.engines) == 1


async def test_errors_of_requests_leave_the_circuit_closed(run_host: RunHost) -> None:
    """Whoever sends nonsense takes no pool away from the others."""
    host = await run_host(Options(config={"supervision": {**FAST, "circuit": CIRCUIT}}))
    for number in range(1, 6):
        await fail_job(host, number, Failure.INVALID_REQUEST)

    assert host.orchestrator.ready()


async def test_an_engine_whose_probes_fail_is_replaced(run_host: RunHost) -> None:
    """After the last probe another engine is started, with a closed circuit. ORCH-3040."""
    host = await run_host(Options(config={"supervision": {**FAST, "circuit": CIRCUIT}}))
    first = await host.ready()
    for _ in range(3):
        fails_test(host.engine)
    await fail_job(host, 1)
    await fail_job(host, 2)

    await host.orchestrator.until(lambda: len(host.engines) == 2)
    await host.orchestrator.until(
        lambda: (ready := host.orchestrator.ready()) and ready.replica_id != first
    )

    assert host.engines[0].stopped.is_set()


async def test_a_pool_that_gave_up_says_so_again_and_starts_when_revived(
    run_host: RunHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log repeats what is wrong; SIGHUP's handler starts it again. ORCH-3053."""

    def prepare(engine: ScriptedEngine, number: int) -> None:
        engine.preload_problem = "model.gguf does not exist" if number < 2 else ""

    limits = {**FAST, "storm_failures": 2, "storm_remind_ms": 1}
    host = await run_host(Options(prepare=prepare, config={"supervision": limits}))
    await until_reason(host.orchestrator, "RESTART_STORM")
    reports = len(host.orchestrator.acks)
    await host.orchestrator.until(lambda: len(host.orchestrator.acks) >= reports + 2)

    host.manager.revive()
    await host.ready()
    told = capsys.readouterr().out

    assert told.count("serves nothing: model.gguf does not exist") >= 2
    assert "SIGHUP" in told
    assert len(host.engines) == 3


async def test_reviving_leaves_healthy_pools_alone(run_host: RunHost) -> None:
    """SIGHUP restarts nobody who serves."""
    host = await run_host()
    replica_id = await host.ready()

    host.manager.revive()
    await host.start("j1", 1)
    host.engine.say("j1", "x", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)

    assert await host.ready() == replica_id


async def test_an_engine_that_dies_during_a_drain_comes_back_draining(run_host: RunHost) -> None:
    """The drain outlives the engine, and ends when it is taken back. OC-CTRL-2002."""
    host = await run_host()
    first = await host.ready()
    draining = dispatch_pb2.SetPoolDraining(pool_id="p0", draining=True)
    host.orchestrator.send(set_draining=draining)
    await until_reason(host.orchestrator, "OPERATOR")

    host.engine.die()
    await host.orchestrator.until(
        lambda: (
            (newest := host.orchestrator.newest())
            and newest.replica_id != first
            and newest.state == snapshot_pb2.POOL_STATE_DRAINING
        )
    )
    host.orchestrator.send(set_draining=dispatch_pb2.SetPoolDraining(pool_id="p0"))

    assert await host.ready() != first


async def test_device_memory_that_runs_out_is_the_reason(run_host: RunHost) -> None:
    """A preload that lacks VRAM is UNREADY for that, not for some failure. ORCH-3039."""

    def prepare(engine: ScriptedEngine, _number: int) -> None:
        engine.preload_error = PreloadError(["4 GiB too little"], Failure.DEVICE_OUT_OF_MEMORY)
        # The reason is told until the engine is stopped; then the pool waits, which is another one.
        engine.may_stop.clear()

    host = await run_host(Options(prepare=prepare))

    snapshot = await until_reason(host.orchestrator, "DEVICE_OUT_OF_MEMORY")
    host.engine.may_stop.set()

    assert snapshot.state_detail == "4 GiB too little"


async def test_a_log_directory_that_cannot_be_written_is_refused_at_the_start(
    orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """Nobody finds out after a week that no log was kept."""
    (tmp_path / "file").write_text("")
    logs = {"directory": str(tmp_path / "file" / "logs")}
    config = make_config(orchestrator.address, engine_logs=logs)

    with pytest.raises(ConfigError, match=r"engine_logs\.directory: .* cannot be written"):
        await PoolManager(config, devices=CpuDevices()).run()


async def test_what_may_come_by_itself_is_waited_for_however_long(run_host: RunHost) -> None:
    """After a reboot an attached server takes minutes to be there: no storm. ORCH-3053."""

    def prepare(engine: ScriptedEngine, number: int) -> None:
        if number < 5:
            engine.preload_error = PreloadError(["nobody answers"], passing=True)

    host = await run_host(
        Options(prepare=prepare, config={"supervision": {**FAST, "storm_failures": 2}})
    )

    await host.ready()

    assert len(host.engines) == 6


async def test_an_engine_that_is_not_ready_in_time_is_quoted(run_host: RunHost) -> None:
    """What it wrote last says what it was doing, or why it waits. ORCH-3003."""

    def prepare(engine: ScriptedEngine, _number: int) -> None:
        engine.wrote = "Loading safetensors shard 3 of 9"

    limits = {**FAST, "preload_timeout_ms": 50, "storm_failures": 1}
    host = await run_host(Options(prepare=prepare, config={"supervision": limits}))

    failed = await until_reason(host.orchestrator, "RESTART_STORM")

    assert failed.state_detail.startswith(
        "the engine was not ready after 50 ms (it wrote: Loading safetensors shard 3 of 9)"
    )
