"""Runs jobs through a real core under given telemetry."""

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    EnqueueRequested,
    Event,
    HostRegistered,
    OutputProgressed,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.telemetry.fleet import DeviceGauges, PoolGauges
from orchestrator_core.telemetry.observer import Telemetry

START_MS = 1_700_000_000_000
SLOTS = 2


class OneGpu:
    """A fleet of two pools whose first reports everything."""

    def pools(self) -> tuple[PoolGauges, ...]:
        """What the hosts said last."""
        device = DeviceGauges("GPU-1", 0.75, 2048)
        return (PoolGauges("p0", "p0#1", "mock", "1.0", 0.5, (device,)),)


class Driver:
    """A core whose steps telemetry observes, on a clock of its own."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.core = Core(CoreConfig(queue_capacity=1))
        self._telemetry = telemetry
        self._now_ms = START_MS

    def step(self, event: Event) -> None:
        """One event, 10 ms after the last."""
        self._now_ms += 10
        effects = self.core.step(event, self._now_ms)
        self._telemetry.observe(effects, self.core, self._now_ms)

    def enqueue(self, job_id: str, traceparent: str = "") -> str:
        """Enqueues as the servicer does; returns the trace id."""
        metadata = [("traceparent", traceparent)]
        with self._telemetry.rpc("enqueue", metadata) as rpc:
            needs = Needs(model_id="m", engine="mock")
            spec = JobSpec(job_id, needs, digest=job_id, traceparent=rpc.traceparent)
            self.step(EnqueueRequested(spec, reply_to=1))
        return rpc.trace_id

    def host(self) -> None:
        """A host with two pools registers."""
        self.step(HostRegistered("h", 1, tuple(_snapshot(f"p{n}") for n in range(SLOTS))))

    def everything(self) -> None:
        """Lets every kind of metric happen at least once."""
        self.host()
        for name in ("finishes", "is-retried", "waits", "is-rejected"):
            self.enqueue(name)
        self.finish("finishes")
        died = AttemptError(AttemptErrorKind.ENGINE_DIED, "gone")
        self.step(AttemptEnded("is-retried", 1, 2, error=died))
        self.step(CancelRequested("waits", reply_to=2))

    def finish(self, job_id: str) -> None:
        """The first attempt of a job runs to its end."""
        self.step(AttemptStarted(job_id, 1))
        self.step(OutputProgressed(job_id, 1, 1))
        usage = Usage(tokens_in=5, tokens_out=3)
        self.step(AttemptEnded(job_id, 1, 1, Finish.EOS, usage=usage))


def _snapshot(pool_id: str) -> PoolSnapshot:
    return PoolSnapshot(
        pool_id=pool_id,
        replica_id=f"{pool_id}#1",
        host_id="h",
        version=1,
        model_id="m",
        engine="mock",
        engine_version="1.0",
    )
