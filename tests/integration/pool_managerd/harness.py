"""A pool manager with scripted engines, as the tests see it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from pool_managerd.config.schema import Config
from pool_managerd.server import PoolManager
from tests.integration.pool_managerd.fakes import FakeOrchestrator, ScriptedEngine


@dataclass
class Host:
    """A running pool manager, its engines in order of start, and the orchestrator it talks to.

    `model_refs` are the models that the engines were to load; empty: the configured one.
    """

    orchestrator: FakeOrchestrator
    manager: PoolManager
    task: asyncio.Task[None]
    engines: list[ScriptedEngine] = field(default_factory=list)
    model_refs: list[str] = field(default_factory=list)

    @property
    def engine(self) -> ScriptedEngine:
        """The newest engine."""
        return self.engines[-1]

    async def ready(self) -> str:
        """Waits for READY and returns the replica id."""
        await self.orchestrator.until(self.orchestrator.ready)
        snapshot = self.orchestrator.newest()
        assert snapshot is not None
        return snapshot.replica_id

    async def start(self, job_id: str, handle: int, **fields: object) -> None:
        """Sends StartAttempt for the pool's present incarnation."""
        replica_id = fields.pop("replica_id", None) or await self.ready()
        self.orchestrator.send(
            start=dispatch_pb2.StartAttempt(
                **{
                    "handle": handle,
                    "job_id": job_id,
                    "attempt": 1,
                    "pool_id": "p0",
                    "replica_id": replica_id,
                    "model_id": "m",
                    "input": job_pb2.JobInput(text="hello"),
                    "sampling": job_pb2.Sampling(seed=1),
                    **fields,
                }
            )
        )


@dataclass
class Options:
    """What a test changes about the host."""

    slots: int = 1
    deterministic: bool = False
    prepare: Callable[[ScriptedEngine, int], None] = lambda _engine, _number: None
    config: dict[str, object] = field(default_factory=dict)


RunHost = Callable[..., Awaitable[Host]]

FAST = {
    "backoff": {"initial_ms": 1, "cap_ms": 20},
    "health_interval_ms": 20,
    "health_failures": 2,
    "stable_ms": 60_000,
    "cancel_confirm_ms": 100,
    "stop_timeout_ms": 2_000,
}


def make_config(orchestrator: str, **changes: object) -> Config:
    """A configuration for one scripted pool."""
    return Config.model_validate(
        {
            "orchestrator": orchestrator,
            "listen": "127.0.0.1:0",
            "host_id": "test-host",
            "devices": "cpu",
            "shutdown_grace_ms": 2_000,
            "report_interval_ms": 200,
            "link": {"backoff": {"initial_ms": 5, "cap_ms": 50}},
            "supervision": FAST,
            "pools": [{"pool_id": "p0", "engine": {"kind": "mock"}}],
            **changes,
        }
    )


def adopt(first_index: int, handle: int) -> object:
    """A verdict that goes on from `first_index` under `handle`."""

    def verdict(held: dispatch_pb2.HeldAttempt) -> dispatch_pb2.AttemptVerdict:
        return dispatch_pb2.AttemptVerdict(
            job_id=held.job_id,
            attempt=held.attempt,
            verdict=dispatch_pb2.HELD_VERDICT_ADOPT,
            handle=handle,
            first_index=first_index,
        )

    return verdict


async def two_pieces_delivered(host: Host) -> None:
    """An attempt that has delivered two pieces and runs on."""
    await host.start("j1", 1)
    host.engine.say("j1", "a", "b")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text == "ab")
