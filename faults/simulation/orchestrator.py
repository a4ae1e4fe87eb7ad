"""One life of orchestratord in a simulation: its parts, put together as `server.py` does."""

import asyncio
from collections.abc import Sequence

from faults import history as h
from faults.simulation.disk import Disk, SimulatedStore
from faults.simulation.network import Network, Server
from faults.simulation.recorder import Recorder
from faults.simulation.virtual_time import Process, VirtualLoop
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch.pool.v1.pool_registry_service_pb2 import DispatchRequest
from orchestrator_core import failpoints
from orchestrator_core.config import core_config
from orchestrator_core.config_schema import Config
from orchestrator_core.core.effects import Effect, OfferDeclined
from orchestrator_core.core.machine import Core
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.server import STOP_GRACE_S
from orchestrator_core.servicers import orchestrator, pool_registry
from orchestrator_core.servicers.capabilities import ServerFacts
from orchestrator_core.store.port import StoreTakenError
from orchestrator_core.telemetry.calls import Call, Calls, Metadata
from orchestrator_core.telemetry.metrics import Metrics
from orchestrator_core.telemetry.observer import Telemetry
from orchestrator_core.telemetry.tracing import Tracing
from orchestrator_core.wire.jobs import WireLimits

ADDRESS = "orchestrator:7070"
EPOCH_MS = 1_800_000_000_000
"""Where the clocks of a run begin, milliseconds since 1970."""


class VirtualClock:
    """The orchestrator's clock on virtual time; never below the journal's latest instant."""

    def __init__(self, loop: VirtualLoop, not_before_ms: int = 0) -> None:
        self._loop = loop
        self._base_ms = max(EPOCH_MS, not_before_ms - loop.now_ms)

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._base_ms + self._loop.now_ms


class Watcher(Telemetry):
    """Sees what the core decides, as telemetry does, and exports nothing."""

    def __init__(self, recorder: Recorder, process: Process, capacity: int) -> None:
        # Not the parent's construction: it makes instruments, and nothing here is measured.
        self._recorder = recorder
        self._process = process
        self._capacity = capacity
        self._depth = 0
        self._calls = Calls(Tracing(), Metrics(), lambda _: None, lambda: 0)

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """See `Telemetry.observe`."""
        for effect in effects:
            if isinstance(effect, OfferDeclined):
                self._recorder.record(self._process, h.OfferDeclined, job_id=effect.job_id)
        if core.queue_depth() > self._depth:
            queued = sum(
                job.state is JobState.QUEUED and not job.attempts_made for job in core.jobs.values()
            )
            self._recorder.record(
                self._process, h.QueueSeen, queued=queued, capacity=self._capacity
            )
        self._depth = core.queue_depth()

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """See `Telemetry.dispatch_traceparent`."""
        return ""

    def host_reported(self, pool: snapshot_pb2.PoolSnapshot) -> None:
        """See `Telemetry.host_reported`."""

    def host_down(self, host_id: str, why: str) -> None:
        """See `Telemetry.host_down`."""

    def rpc(self, name: str, metadata: Metadata | None) -> Call:
        """See `Telemetry.rpc`."""
        return self._calls.rpc(name, None)


class Orchestrator:
    """One life. `start` recovers and serves; a crash simply freezes its process.

    `relay_bytes` of each job's output are kept here, by default as many as configured. With
    `trusting` it does not look at which epoch a host has seen: one of an earlier version.
    """

    def __init__(
        self,
        config: Config,
        disk: Disk,
        network: Network,
        recorder: Recorder,
        relay_bytes: int | None = None,
    ) -> None:
        self.process = Process(ADDRESS)
        self._relay_bytes = relay_bytes or config.jobs.output_bytes_per_job
        self.store = SimulatedStore(disk)
        self.trusting = False
        self.listening = False
        self._config = config
        self._network = network
        self._recorder = recorder
        self.runtime: Runtime | None = None

    async def start(self, loop: VirtualLoop) -> None:
        """Recovers the journal and takes connections. To be run as this process.

        It returns once another has taken the journal, and who waited here has been told.
        """
        store = self.store
        opened = await store.open()
        failpoints.reach("journal.opened")
        config, jobs = self._config, self._config.jobs
        hosts = Hosts()
        watcher = Watcher(self._recorder, self.process, config.queue.capacity)
        runtime = self.runtime = Runtime(
            Core(core_config(config)),
            store,
            VirtualClock(loop, opened.last_ms),
            Relay(RelayLimits(self._relay_bytes, jobs.output_bytes_total)),
            hosts,
            watcher,
        )
        runtime.recover(opened.recovered)
        self._recorder.record(
            self.process,
            h.Recovered,
            epoch=opened.epoch,
            states={job.job_id: job.state.name for job in runtime.core.jobs.values()},
        )
        terms = LinkTerms(
            epoch=opened.epoch,
            journal_id=opened.journal_id,
            report_interval_ms=config.pools.report_interval_ms,
            heartbeat_timeout_ms=config.pools.heartbeat_timeout_ms,
            send_window_bytes=config.pools.send_window_bytes,
        )
        facts = ServerFacts("simulated", 4 << 20, jobs.input_bytes_max, jobs.output_bytes_per_job)
        limits = WireLimits(input_bytes_max=jobs.input_bytes_max)
        servicers = (
            orchestrator.OrchestratorServicer(runtime, watcher, limits, facts),
            pool_registry.PoolRegistryServicer(runtime, watcher, terms),
        )
        handlers = [servicer.handlers() for servicer in servicers]
        server = Server(self.process, handlers, self._network.bugs, self._read)
        self._network.serve(ADDRESS, server)
        failpoints.reach("listening")
        self.listening = True
        self.process.spawn(runtime.watch_pauses())
        try:
            await runtime.run()
        except StoreTakenError:
            self._recorder.record(self.process, h.Fenced, epoch=opened.epoch)
            servicers[0].stop()
            await asyncio.sleep(STOP_GRACE_S)

    def _read(self, message: object) -> None:
        """What arrives here, before anybody looks at it."""
        if self.trusting and isinstance(message, DispatchRequest) and message.HasField("register"):
            message.register.ClearField("epoch")

    def measures(self) -> dict[str, int]:
        """What is held, in numbers that must come back to where they were."""
        assert self.runtime is not None, "it has started"
        runtime = self.runtime
        links = runtime.hosts.links.values()
        return {
            "attempts": runtime.core.live_attempts,
            "bindings": sum(len(link.bindings) for link in links),
            "jobs": len(runtime.core.jobs),
            "links": len(runtime.hosts.links),
            "relay_bytes": runtime.relay.bytes_held,
            "relay_logs": len(runtime.relay._logs),
            "replies": len(runtime._replies),
            "tasks": self.process.busy,
        }
