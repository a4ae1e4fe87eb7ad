"""Composition root of orchestratord: builds the parts, runs them, drains them. ORCH-3035."""

import asyncio
import importlib.metadata
import resource
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator_core import failpoints
from orchestrator_core.artifacts.files import ArtifactFiles, FilesUnusableError, TemporaryFiles
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.auth.tls import ServerCertificates, TlsError, TlsFiles
from orchestrator_core.clock import Clock, SystemClock
from orchestrator_core.config import Config, ConfigSource, core_config, tokens
from orchestrator_core.config_catalog import CatalogTable
from orchestrator_core.config_schema import OutboundTable, loopback_bind
from orchestrator_core.core import placement
from orchestrator_core.core.events import DrainRequested
from orchestrator_core.core.machine import Core
from orchestrator_core.errors import OrchestratorError
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts, ReportedFleet
from orchestrator_core.live_config import LiveConfig
from orchestrator_core.live_parts import LiveParts
from orchestrator_core.recorder.explaining import Explainer
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.served_facts import ServedFacts
from orchestrator_core.servicers import (
    artifacts,
    catalog,
    configuration,
    inputs,
    orchestrator,
    policy,
    pool_admin,
    pool_registry,
    sessions,
)
from orchestrator_core.servicers.auth import TokenGate, tell_unbound
from orchestrator_core.servicers.capabilities import ServerFacts
from orchestrator_core.servicers.outbound_judge import (
    NoSuchPolicyError,
    OutboundJudge,
    configured_judge,
)
from orchestrator_core.servicers.signatures import (
    NoSignaturesError,
    Signatures,
    configured_signatures,
)
from orchestrator_core.servicers.token_ends import ExpiryWarnings
from orchestrator_core.status.page import StatusPage
from orchestrator_core.status.reading import StatusReader
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import (
    Keep,
    Opened,
    Store,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from orchestrator_core.store.sqlite import SqliteStore
from orchestrator_core.telemetry.measured_store import MeasuredStore
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire.jobs import WireLimits

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 1_024
# gRPC ends calls at random, with CANCELLED and without details, while more than so many wait to be
# taken up, and all beyond the second number. Its defaults, 1,000 and 3,000, are a burst that two
# clients may send, and on a starved machine a few seconds of calls; each takes some kilobytes.
PENDING_CALLS_MAX = 4 * STREAMS_PER_CONNECTION_MAX
PENDING_CALLS_END = 2 * PENDING_CALLS_MAX
HANDSHAKE_MS_MAX = 20_000
IDLE_MS_MAX = 600_000
# Each connection is an open file; the journal and the recorder need some, too.
CONNECTIONS_MAX = 4_096
# Streams end by themselves once their jobs have; this is for those that do not.
STOP_GRACE_S = 0.5

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # Source: grpc 1.85, src/core/server/server.h.
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_END),
    # Clients and hosts ping idle connections; the defaults would cut them off for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A stream may be silent for as long as a prompt is long: pings go on all the same.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
    # Who connects and does not go on, or has long had no call open, makes room. Clients connect
    # again by themselves; hosts have a stream open.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
    ("grpc.max_connection_idle_ms", IDLE_MS_MAX),
    # The probe lets a stream run up megabytes that nobody has read yet. Under overload that is many
    # seconds of frames, behind which snapshots wait until they are stale. Without it 64 KiB are on
    # the way, and a host that is ahead gathers its output in fewer, larger chunks.
    ("grpc.http2.bdp_probe", 0),
)


def connections_max() -> int:
    """Connections that are taken at a time: at most half of what the process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files < 0 else min(CONNECTIONS_MAX, max(1, files // 2))


CORE_FORM = "interpreted" if placement.__file__.endswith(".py") else "compiled"
_log = structlog.get_logger("orchestratord")


class CannotStartError(OrchestratorError):
    """The server cannot start as configured; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server really listens, also when port 0 was asked for."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class OrchestratorServer:
    """One orchestratord. `start`, then `stop`; both once.

    `store` replaces the configured one, `source` is where a reload reads the configuration again.
    """

    def __init__(
        self, config: Config, store: Store | None = None, source: ConfigSource | None = None
    ) -> None:
        self._config = config
        self.config = LiveConfig(config, source)
        self._hosts = Hosts()
        self._telemetry = Telemetry.from_config(config, fleet=ReportedFleet(self._hosts))
        self._store: Store = MeasuredStore(store or _store(config), self._telemetry.committed)
        self._gate = self._make_gate()
        gates = () if self._gate is None else (self._gate,)
        options = (*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", connections_max()))
        self._server = grpc.aio.server(options=options, interceptors=gates)
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self._runtime: Runtime | None = None
        self._artifacts: Artifacts | None = None
        self._jobs: orchestrator.OrchestratorServicer | None = None
        self.address = Address("", 0)
        self.metrics_port: int | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime, once started."""
        assert self._runtime is not None, "start() comes first"
        return self._runtime

    @property
    def artifacts(self) -> Artifacts:
        """The artifacts, once started."""
        assert self._artifacts is not None, "start() comes first"
        return self._artifacts

    async def start(self) -> None:
        """Takes the address, recovers the journal and begins to serve.

        Raises:
            CannotStartError: when the address is not free, or the outbound policy not there;
                nothing was written then. When the directory of artifacts cannot be used.
            StoreError: when the journal cannot be opened.
            OSError: when the metrics address is not free.
        """
        judge, signatures = _judge(self._config.outbound), _signatures(self._config.catalog)
        self._listen()
        opened = await self._store.open()
        failpoints.reach("journal.opened")
        clock = SystemClock(opened.last_ms)
        self._runtime = runtime = self._build(clock)
        self._artifacts = kept = _artifacts(self._config, self._store, runtime)
        try:
            await kept.open(opened)
        except FilesUnusableError as error:
            raise CannotStartError(str(error)) from error
        self._jobs = jobs_servicer = self._jobs_servicer(runtime, kept)
        facts = ServedFacts(self._config, runtime, CORE_FORM)
        self.metrics_port = metrics_port = await self._telemetry.start(
            runtime.core, facts.read, self._status_routes(runtime, jobs_servicer)
        )
        runtime.recover(opened.recovered)
        parts = LiveParts(
            runtime,
            self._telemetry,
            policy.PolicyServicer(runtime, self._telemetry, judge),
            self._gate,
            jobs_servicer,
            pool_admin.PoolAdminServicer(runtime, self._telemetry, self._config.pools),
            facts,
            catalog.CatalogServicer(runtime, self._telemetry, self._config.catalog, signatures),
        )
        self._make_live(parts)
        await self._serve(parts, opened, kept)
        self._tasks = [
            asyncio.create_task(runtime.run(), name="commit"),
            asyncio.create_task(runtime.watch_pauses(), name="pauses"),
            asyncio.create_task(self._prune(runtime, kept), name="prune"),
        ]
        if self._gate is not None:
            tell_unbound(self._gate.tokens)
            warnings = self._warnings(self._gate)
            self._tasks.append(asyncio.create_task(warnings.run(), name="token expiry"))
        failpoints.reach("listening")
        jobs = len(runtime.core.jobs)
        _log.info(
            "listening",
            address=str(self.address),
            epoch=opened.epoch,
            jobs_recovered=jobs,
            metrics_port=metrics_port,
            core=CORE_FORM,
            human=f"orchestratord listens on {self.address}; {jobs} jobs recovered.",
        )

    async def drain(self, grace_s: float) -> bool:
        """Takes no more work and waits for what runs; False when the grace was over first."""
        runtime = self.runtime
        await self._health.enter_graceful_shutdown()
        runtime.submit(DrainRequested())
        try:
            async with asyncio.timeout(grace_s):
                await runtime.idle.wait()
                await runtime.flush()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Closes everything. Idempotent. Jobs that still run are found again at the next start."""
        for link in list(self._runtime.hosts.links.values()) if self._runtime else ():
            link.closed.set()
        if self._jobs is not None:
            self._jobs.stop()
        await self._server.stop(STOP_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._runtime is not None:
            self._runtime.close()
            if isinstance(core := self._runtime.core, RecordedCore):
                core.end()
                await asyncio.to_thread(core.recorder.join)
        if self._artifacts is not None:
            await self._artifacts.close()
        await self._store.close()
        await self._telemetry.shutdown()

    async def wait_failed(self) -> None:
        """Raises what a background task or a step of the core raised.

        That is always a bug, or `StoreTakenError`.
        """
        watched = [*self._tasks, self.runtime.failed]
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise AssertionError("a background task ended by itself")

    def _listen(self) -> None:
        """Takes the address; whoever connects is kept waiting until the server has started."""
        listen, tls = self._config.listen, self._config.tls
        try:
            if tls.certificate:
                files = TlsFiles(tls.certificate, tls.key, tls.client_ca)
                port = self._server.add_secure_port(listen, ServerCertificates(files).credentials())
            else:
                port = self._server.add_insecure_port(listen)
        except TlsError as error:
            raise CannotStartError(str(error)) from error
        except RuntimeError as error:
            raise CannotStartError(f"cannot listen on {listen}: {error}") from error
        if not tls.certificate and not loopback_bind(listen):
            _log.warning(
                "plaintext",
                address=listen,
                human="Tokens and prompts pass in the clear: tls.allow_plaintext is set.",
            )
        self.address = Address(listen.rpartition(":")[0], port)

    def _make_gate(self) -> TokenGate | None:
        """Without tokens nobody is asked for one, and calls do not take the way through a chain."""
        known = tokens(self._config)
        return TokenGate(known, self._telemetry.watched) if known else None

    def _warnings(self, gate: TokenGate) -> ExpiryWarnings:
        return ExpiryWarnings(
            lambda: gate.tokens, lambda: self.config.running.auth.expiry_warning_days
        )

    def _build(self, clock: Clock) -> Runtime:
        jobs = self._config.jobs
        relay = Relay(RelayLimits(jobs.output_bytes_per_job, jobs.output_bytes_total))
        settings = _recorder(self._config, clock.now_ms())
        bounds = core_config(self._config)
        core = Core(bounds) if settings is None else RecordedCore(bounds, settings)
        return Runtime(core, self._store, clock, relay, self._hosts, self._telemetry.steps)

    def _jobs_servicer(
        self, runtime: Runtime, kept: Artifacts
    ) -> orchestrator.OrchestratorServicer:
        config = self._config
        facts = ServerFacts(
            version=importlib.metadata.version("llamaorch"),
            message_bytes_max=MESSAGE_BYTES_MAX,
            input_bytes_max=config.jobs.input_bytes_max,
            output_bytes_per_job=config.jobs.output_bytes_per_job,
            streams_per_connection_max=STREAMS_PER_CONNECTION_MAX,
        )
        limits = WireLimits(input_bytes_max=config.jobs.input_bytes_max)
        return orchestrator.OrchestratorServicer(
            runtime, self._telemetry, limits, facts, _explainer(runtime), kept
        )

    def _status_routes(
        self, runtime: Runtime, jobs: orchestrator.OrchestratorServicer
    ) -> list[web.RouteDef]:
        if not self._config.status_page:
            return []
        reader = StatusReader(runtime, importlib.metadata.version("llamaorch"))
        return StatusPage(reader.read, jobs.explain).routes()

    def _make_live(self, parts: LiveParts) -> None:
        """From here on a reload reaches the parts."""
        clock = parts.runtime.clock
        self.config.prepare = parts.prepare
        self.config.tell = lambda report: self._telemetry.config_reloaded(report, clock.now_ms())

    async def _serve(self, parts: LiveParts, opened: Opened, kept: Artifacts) -> None:
        config, runtime = self._config, parts.runtime
        terms = LinkTerms(
            epoch=opened.epoch,
            journal_id=opened.journal_id,
            report_interval_ms=config.pools.report_interval_ms,
            heartbeat_timeout_ms=config.pools.heartbeat_timeout_ms,
            send_window_bytes=config.pools.send_window_bytes,
            reattach_grace_ms=config.pools.reattach_grace_ms,
        )
        servicers = (
            parts.jobs,
            parts.pools,
            sessions.SessionServicer(runtime),
            parts.policy,
            parts.catalog,
            configuration.ConfigServicer(self.config),
            artifacts.ArtifactServicer(runtime, kept),
            pool_registry.PoolRegistryServicer(runtime, self._telemetry, terms),
            inputs.InputServicer(runtime, kept),
        )
        watched = self._telemetry.watched
        self._server.add_generic_rpc_handlers([watched(each.handlers()) for each in servicers])
        names = (
            orchestrator.SERVICE,
            pool_admin.SERVICE,
            sessions.SERVICE,
            artifacts.SERVICE,
            catalog.SERVICE,
            policy.SERVICE,
            configuration.SERVICE,
            pool_registry.SERVICE,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._server.start()

    async def _prune(self, runtime: Runtime, kept: Artifacts) -> None:
        """Deletes what nobody may ask for any more, or what is too much."""
        while True:
            await self.config.pause(lambda config: config.store.prune_every_ms)
            jobs, store = self.config.running.jobs, self.config.running.store
            # A repeated request must find its first answer, also after a restart.
            kept_ms = max(jobs.retention_ms, jobs.idempotency_ttl_ms)
            keep = Keep(
                ended_since_ms=runtime.clock.now_ms() - kept_ms,
                ended_max=max(jobs.finished_max, jobs.idempotency_max),
                ended_min=jobs.finished_max,
                bytes_max=store.bytes_max,
            )
            failpoints.reach("prune.before")
            try:
                await self._store.prune(keep)
                await kept.expire()
            except (StoreUnavailableError, StoreOutcomeUnknownError) as error:
                _log.warning(
                    "prune_failed",
                    error=str(error),
                    human="Old jobs or artifacts could not be deleted from the journal; it is"
                    " tried again.",
                )
            failpoints.reach("prune.after")


def _judge(table: OutboundTable) -> OutboundJudge:
    try:
        return configured_judge(table)
    except NoSuchPolicyError as error:
        raise CannotStartError(str(error)) from error


def _signatures(table: CatalogTable) -> Signatures:
    try:
        return configured_signatures(table)
    except NoSignaturesError as error:
        raise CannotStartError(str(error)) from error


def _store(config: Config) -> Store:
    if config.store.kind == "memory":
        return MemoryStore()
    return SqliteStore(Path(config.store.path), free_bytes_kept=config.store.free_bytes_kept)


def _artifacts(config: Config, store: Store, runtime: Runtime) -> Artifacts:
    limits = config.artifacts
    if limits.path or config.store.kind == "sqlite":
        directory = Path(limits.path or Path(config.store.path).parent / "artifacts")
        files = ArtifactFiles(directory, limits.free_bytes_min)
    else:
        files = TemporaryFiles(limits.free_bytes_min)
    return Artifacts(limits, files, store, runtime.clock.now_ms, runtime.inputs_in_use)


def _explainer(runtime: Runtime) -> Explainer | None:
    core = runtime.core
    return Explainer(core.recorder) if isinstance(core, RecordedCore) else None


def _recorder(config: Config, started_ms: int) -> RecorderSettings | None:
    """Where to record; None for nowhere. A journal in memory says that nothing shall be kept."""
    recorder = config.recorder
    if not recorder.enabled or (config.store.kind == "memory" and not recorder.path):
        return None
    directory = Path(recorder.path or Path(config.store.path).parent / "flight")
    return RecorderSettings(directory, started_ms, recorder.segment_bytes, recorder.segments_max)
