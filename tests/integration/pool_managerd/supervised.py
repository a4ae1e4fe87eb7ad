"""Engines that fail as a test says, and the reasons that their pools give."""

from llamaorch.pool.v1 import snapshot_pb2
from pool_managerd.engines.port import Failed, Failure, Finish, Finished, Piece, Usage
from tests.integration.pool_managerd.fakes import FakeOrchestrator, ScriptedEngine
from tests.integration.pool_managerd.harness import Host

TESTED = [{"pool_id": "p0", "self_test": True, "engine": {"kind": "mock"}}]
CIRCUIT = {"errors": 2, "pause": {"initial_ms": 1, "cap_ms": 5}, "probes_max": 3}


def answers_test(engine: ScriptedEngine, _number: int = 0) -> None:
    """The engine passes one self-test."""
    engine.feed_of("self-test-decode").put_nowait(Piece("a", (1,)))
    engine.feed_of("self-test-decode").put_nowait(Finished(Finish.LENGTH, Usage(tokens_out=1)))
    engine.feed_of("self-test-cancel").put_nowait(Piece("a", (1,)))


def fails_test(engine: ScriptedEngine) -> None:
    """The engine fails one self-test."""
    failed = Failed(Failure.ENGINE_ERROR, "no kernel image for this device")
    engine.feed_of("self-test-decode").put_nowait(failed)


async def until_reason(orchestrator: FakeOrchestrator, reason: str) -> snapshot_pb2.PoolSnapshot:
    """The first snapshot from here on that gives `reason`."""
    wanted = snapshot_pb2.PoolStateReason.Value(f"POOL_STATE_REASON_{reason}")
    await orchestrator.until(lambda: any(s.state_reason == wanted for s in orchestrator.snapshots))
    return next(s for s in reversed(orchestrator.snapshots) if s.state_reason == wanted)


async def fail_job(host: Host, number: int, failure: Failure = Failure.ENGINE_ERROR) -> None:
    """One attempt that the engine breaks."""
    await host.start(f"j{number}", number)
    host.engine.feed(f"j{number}").put_nowait(Failed(failure, "illegal memory access"))
    await host.orchestrator.until(lambda: host.orchestrator.stored(number).ended)
