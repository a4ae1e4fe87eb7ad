"""Runs jobs through a real core under given telemetry."""

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.catalog_model import ModelCard
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
    ModelPut,
    OutputProgressed,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.telemetry.fleet import DeviceGauges, DeviceHealth, PoolGauges
from orchestrator_core.telemetry.service_metrics import ArtifactFacts, ServiceFacts
from orchestrator_core.telemetry.telemetry import Telemetry

START_MS = 1_700_000_000_000
SLOTS = 2


class OneGpu:
    """A fleet of two pools whose first reports everything."""

    def pools(self) -> tuple[PoolGauges, ...]:
        """What the hosts said last."""
        device = DeviceGauges(
            "GPU-1",
            utilization_ratio=0.75,
            memory_used_bytes=2048,
            memory_total_bytes=4096,
            name="NVIDIA Test",
            driver_version="550.1",
            temperature_celsius=61,
            power_milliwatts=250_500,
            sm_clock_mhz=1_200,
            max_sm_clock_mhz=2_400,
            clock_event_reasons=0x44,
            ecc_uncorrected_total=2,
            last_xid=79,
            health=DeviceHealth.OK,
        )
        return (PoolGauges("p0", "p0#1", "mock", "1.0", 0.5, (device,), "h"),)


ARTIFACTS = ArtifactFacts(2, 10, 800, 1_000, {"artifact-quota": 1}, {"in": 900, "out": 70}, 1)
FACTS = ServiceFacts(
    "0.1.0", "interpreted", {"main": 8192, "wal": 512}, 1 << 30, 3, 1, 100, 200, 1, ARTIFACTS
)


class Driver:
    """A core whose steps telemetry observes, on a clock of its own."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.core = Core(CoreConfig(queue_capacity=1))
        self.telemetry = telemetry
        self._now_ms = START_MS

    def step(self, event: Event) -> None:
        """One event, 10 ms after the last."""
        self._now_ms += 10
        effects = self.core.step(event, self._now_ms)
        self.telemetry.steps.observe(effects, self.core, self._now_ms)

    def enqueue(self, job_id: str, traceparent: str = "", deadline_ms: int | None = None) -> str:
        """Enqueues as the servicer does, with a deadline from now; returns the trace id."""
        metadata = [("traceparent", traceparent)]
        with self.telemetry.rpc("enqueue", metadata) as rpc:
            needs = Needs(model_id="m", engine="mock")
            spec = JobSpec(
                job_id,
                needs,
                digest=job_id,
                traceparent=rpc.traceparent,
                deadline_ms=None if deadline_ms is None else self._now_ms + deadline_ms,
            )
            self.step(EnqueueRequested(spec, reply_to=1))
        return rpc.trace_id

    def host(self) -> None:
        """A host with two pools registers."""
        self.step(HostRegistered("h", 1, tuple(_snapshot(f"p{n}") for n in range(SLOTS))))

    def everything(self) -> None:
        """Lets every kind of metric happen at least once."""
        self.host()
        self.enqueue("finishes", deadline_ms=60_000)
        for name in ("is-retried", "waits", "is-rejected"):
            self.enqueue(name)
        self.finish("finishes")
        died = AttemptError(AttemptErrorKind.ENGINE_DIED, "gone")
        self.step(AttemptEnded("is-retried", 1, 2, error=died))
        self.step(CancelRequested("waits", reply_to=2))
        for boot in ("p0#1", "p0#2"):
            self.telemetry.host_reported(
                snapshot_pb2.PoolSnapshot(pool_id="p0", replica_id=boot, engine="mock")
            )
        self.step(ModelPut(ModelCard("m", digest="sha256:1"), 0, reply_to=3))
        self.telemetry.committed("written", 2.5, 3)
        self.telemetry.host_down("h", "the stream ended")

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
