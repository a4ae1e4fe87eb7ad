"""One life of orchestratord in a simulation: its parts, put together as `server.py` does."""

import asyncio
import contextlib
from collections.abc import Sequence

from faults import history as h
from faults import operator_events as o
from faults.simulation.disk import Disk, SimulatedStore
from faults.simulation.network import Network, Server
from faults.simulation.recorder import Recorder
from faults.simulation.settings import SettingsFile, mark_in_force
from faults.simulation.tape import TapedCore
from faults.simulation.virtual_time import Process, VirtualLoop
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch.pool.v1.pool_registry_service_pb2 import DispatchRequest
from orchestrator_core import failpoints
from orchestrator_core.config.derived import core_config
from orchestrator_core.config.live import LiveConfig
from orchestrator_core.configured_parts import judge_of, signatures_of
from orchestrator_core.core.effects import Effect, OfferDeclined
from orchestrator_core.core.events import DrainRequested
from orchestrator_core.core.machine import Core
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.live_parts import LiveParts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.served_facts import ServedFacts
from orchestrator_core.server import STOP_GRACE_S
from orchestrator_core.servicers import (
    catalog,
    configuration,
    orchestrator,
    policy,
    pool_admin,
    pool_registry,
)
from orchestrator_core.servicers.capabilities import ServerFacts
from orchestrator_core.store.port import Opened, StoreTakenError
from orchestrator_core.telemetry.calls import Call, Calls, Metadata
from orchestrator_core.telemetry.metrics import Metrics
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.telemetry.tracing import Tracing
from orchestrator_core.wire.limits import WireLimits

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

    def ahead_ms(self) -> int:
        """See `Clock.ahead_ms`: clients have the same clock."""
        return 0


class Watcher(Telemetry):
    """Sees what the core decides, as telemetry does, and exports nothing."""

    def __init__(self, recorder: Recorder, process: Process) -> None:
        # Not the parent's construction: it makes instruments, and nothing here is measured.
        self._recorder = recorder
        self._process = process
        self._config: object = None
        self._depth = 0
        self._stay = 0
        self._calls = Calls(Tracing(), Metrics(), lambda _: None, lambda: 0)

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """See `Observer.observe`."""
        for effect in effects:
            if isinstance(effect, OfferDeclined):
                self._recorder.record(self._process, h.OfferDeclined, job_id=effect.job_id)
        if core.config is not self._config:
            self._reconfigured(core)
        capacity, grew = core.config.queue_capacity, core.queue_depth() > self._depth
        if grew or self._stay > capacity:
            queued = _queued(core)
            if grew:
                bound = max(capacity, self._stay)
                self._recorder.record(self._process, h.QueueSeen, queued=queued, capacity=bound)
            self._stay = min(self._stay, queued)
        self._depth = core.queue_depth()

    def _reconfigured(self, core: Core) -> None:
        """Who waits under a lower bound than before may stay."""
        started, self._config = self._config is None, core.config
        self._stay = _queued(core)
        mark = mark_in_force(core.config)
        self._recorder.record(self._process, o.InForce, mark=mark, started=started)

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """See `Observer.dispatch_traceparent`."""
        return ""

    def host_reported(self, pool: snapshot_pb2.PoolSnapshot) -> None:
        """See `Telemetry.host_reported`."""

    def host_down(self, host_id: str, why: str) -> None:
        """See `Telemetry.host_down`."""

    def signature_checked(self, model_id: str, verdict: str) -> None:
        """See `Telemetry.signature_checked`."""

    def pool_reloaded(self, pool_id: str, outcome: str, why: str, span_ms: tuple[int, int]) -> None:
        """See `Telemetry.pool_reloaded`."""

    def rpc(self, name: str, metadata: Metadata | None) -> Call:
        """See `Telemetry.rpc`."""
        return self._calls.rpc(name, None)


def _queued(core: Core) -> int:
    """New jobs that wait: those that wait for a retry do not count."""
    return sum(job.state is JobState.QUEUED and not job.attempts_made for job in core.jobs.values())


class Orchestrator:
    """One life. `start` recovers and serves; a crash simply freezes its process.

    With `trusting` it does not look at which epoch a host has seen: one of an earlier version.
    """

    def __init__(
        self, file: SettingsFile, disk: Disk, network: Network, recorder: Recorder
    ) -> None:
        self.process = Process(ADDRESS)
        self.store = SimulatedStore(disk)
        self.trusting = False
        self.listening = False
        self._live = LiveConfig(file.good, file)
        self.core = TapedCore(core_config(file.good))
        self.core.on_give_up = self._gave_up
        self._network = network
        self._recorder = recorder
        self.runtime: Runtime | None = None
        self._jobs: orchestrator.OrchestratorServicer | None = None

    async def start(self, loop: VirtualLoop) -> None:
        """Recovers the journal and takes connections. To be run as this process.

        It returns once another has taken the journal, and who waited here has been told.
        """
        store = self.store
        opened = await store.open()
        failpoints.reach("journal.opened")
        config, jobs = self._live.running, self._live.running.jobs
        hosts = Hosts()
        watcher = Watcher(self._recorder, self.process)
        runtime = self.runtime = Runtime(
            self.core,
            store,
            VirtualClock(loop, opened.last_ms),
            Relay(RelayLimits(jobs.output_bytes_per_job, jobs.output_bytes_total)),
            hosts,
            watcher,
        )
        runtime.recover(opened.recovered)
        self._recorder.record(
            self.process,
            h.Recovered,
            epoch=opened.epoch,
            states={job.job_id: job.state.name for job in runtime.core.jobs.values()},
            models=_catalog(runtime.core),
            drains=_drains(runtime.core, opened),
        )
        terms = LinkTerms(
            epoch=opened.epoch,
            journal_id=opened.journal_id,
            report_interval_ms=config.pools.report_interval_ms,
            heartbeat_timeout_ms=config.pools.heartbeat_timeout_ms,
            send_window_bytes=config.pools.send_window_bytes,
        )
        parts = self._parts(runtime, watcher)
        self._jobs = parts.jobs
        self._live.prepare = parts.prepare
        servicers = (
            parts.jobs,
            parts.pools,
            parts.catalog,
            configuration.ConfigServicer(self._live),
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
            parts.jobs.stop()
            await asyncio.sleep(STOP_GRACE_S)

    def _parts(self, runtime: Runtime, watcher: Watcher) -> LiveParts:
        config, jobs = self._live.running, self._live.running.jobs
        facts = ServerFacts("simulated", 4 << 20, jobs.input_bytes_max, jobs.output_bytes_per_job)
        limits = WireLimits(input_bytes_max=jobs.input_bytes_max)
        return LiveParts(
            runtime,
            watcher,
            policy.PolicyServicer(runtime, watcher, judge_of(config.outbound)),
            None,
            orchestrator.OrchestratorServicer(runtime, watcher, limits, facts),
            pool_admin.PoolAdminServicer(runtime, watcher, config.pools),
            ServedFacts(config, runtime, "simulated"),
            catalog.CatalogServicer(
                runtime, watcher, config.catalog, signatures_of(config.catalog)
            ),
        )

    async def leave(self, grace_ms: int) -> None:
        """Stops in order, as `server.py` does: takes no more work, ends its streams."""
        runtime, jobs = self.runtime, self._jobs
        if runtime is None or jobs is None:
            return
        runtime.submit(DrainRequested())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_ms / 1000):
                await runtime.idle.wait()
                await runtime.flush()
        for link in list(runtime.hosts.links.values()):
            link.closed.set()
        jobs.stop()
        await asyncio.sleep(STOP_GRACE_S)

    def _gave_up(self, job_id: str, attempt: int) -> None:
        self._recorder.record(self.process, h.AttemptGivenUp, job_id=job_id, attempt=attempt)

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


def _catalog(core: Core) -> dict[str, tuple[str, int]]:
    return {
        model_id: (entry.state.name, entry.revision)
        for model_id, entry in sorted(core.catalog.entries.items())
    }


def _drains(core: Core, opened: Opened) -> tuple[str, ...]:
    """Pools that are drained, of those that the journal names."""
    named = sorted(drain.pool_id for drain in opened.recovered.drains)
    return tuple(pool_id for pool_id in named if core.drain_of(pool_id) is not None)
