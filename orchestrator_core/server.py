"""Composition root of orchestratord: builds the parts, runs them, drains them. ORCH-3035."""

import asyncio
import importlib.metadata
from dataclasses import dataclass

import grpc
import structlog
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator_core import failpoints, grpc_options
from orchestrator_core.artifacts.files import FilesUnusableError
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.auth.tls import ServerCertificates, TlsError, TlsFiles
from orchestrator_core.binding import refusal, unbindable
from orchestrator_core.clock import Clock, SystemClock
from orchestrator_core.config.access import loopback_bind
from orchestrator_core.config.derived import core_config, tokens
from orchestrator_core.config.live import LiveConfig
from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.config.schema import Config
from orchestrator_core.configured_parts import (
    artifacts_of,
    explainer_of,
    judge_of,
    recorder_of,
    signatures_of,
    store_of,
)
from orchestrator_core.core import placement
from orchestrator_core.core.events import DrainRequested
from orchestrator_core.core.machine import Core
from orchestrator_core.errors import CannotStartError
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts, ReportedFleet
from orchestrator_core.live_parts import LiveParts
from orchestrator_core.recorder.recorder import RecordedCore
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
from orchestrator_core.servicers.token_ends import ExpiryWarnings
from orchestrator_core.status.page import StatusPage
from orchestrator_core.status.reading import StatusReader
from orchestrator_core.store.port import (
    Keep,
    Opened,
    Store,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from orchestrator_core.telemetry.measured_store import MeasuredStore
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire.limits import WireLimits

# Streams end by themselves once their jobs have; this is for those that do not.
STOP_GRACE_S = 0.5
# What was told is durable: a disk that does not answer must not keep the process from ending.
JOURNAL_CLOSE_S = 5.0

CORE_FORM = "interpreted" if placement.__file__.endswith(".py") else "compiled"
_log = structlog.get_logger("orchestratord")


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
        self._store: Store = MeasuredStore(store or store_of(config), self._telemetry.committed)
        self._gate = self._make_gate()
        gates = () if self._gate is None else (self._gate,)
        options = (
            *grpc_options.SERVER_OPTIONS,
            ("grpc.max_allowed_incoming_connections", grpc_options.connections_max()),
        )
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
        judge, signatures = judge_of(self._config.outbound), signatures_of(self._config.catalog)
        self._listen()
        opened = await self._store.open()
        failpoints.reach("journal.opened")
        clock = SystemClock(opened.last_ms)
        self._runtime = runtime = self._build(clock)
        self._artifacts = kept = artifacts_of(self._config, self._store, runtime)
        try:
            await kept.open(opened)
        except FilesUnusableError as error:
            raise CannotStartError(str(error)) from error
        self._jobs = jobs_servicer = self._jobs_servicer(runtime, kept)
        facts = ServedFacts(self._config, runtime, CORE_FORM, kept)
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
            self._tasks.append(asyncio.create_task(self._gate.watch_streams(), name="token ends"))
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
        await self._close_journal()
        await self._telemetry.shutdown()

    async def _close_journal(self) -> None:
        try:
            async with asyncio.timeout(JOURNAL_CLOSE_S):
                await self._store.close()
        except TimeoutError:
            _log.error(
                "journal_not_closed",
                human="The journal's disk does not answer, so nobody waits for it any more: look at"
                " its health. All that clients were told of is in the journal.",
            )

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
        if (taken := unbindable(listen)) is not None:
            raise CannotStartError(refusal("listen", listen, taken))
        try:
            if tls.certificate:
                files = TlsFiles(tls.certificate, tls.key, tls.client_ca)
                port = self._server.add_secure_port(listen, ServerCertificates(files).credentials())
            else:
                port = self._server.add_insecure_port(listen)
        except TlsError as error:
            raise CannotStartError(str(error)) from error
        except RuntimeError as error:
            raise CannotStartError(f"listen: cannot listen on {listen}: {error}") from error
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
        settings = recorder_of(self._config, clock.now_ms())
        bounds = core_config(self._config)
        core = Core(bounds) if settings is None else RecordedCore(bounds, settings)
        return Runtime(core, self._store, clock, relay, self._hosts, self._telemetry.steps)

    def _jobs_servicer(
        self, runtime: Runtime, kept: Artifacts
    ) -> orchestrator.OrchestratorServicer:
        config = self._config
        facts = ServerFacts(
            version=importlib.metadata.version("llamaorch"),
            message_bytes_max=grpc_options.MESSAGE_BYTES_MAX,
            input_bytes_max=config.jobs.input_bytes_max,
            output_bytes_per_job=config.jobs.output_bytes_per_job,
            streams_per_connection_max=grpc_options.STREAMS_PER_CONNECTION_MAX,
            artifact_input_bytes_max=min(
                config.artifacts.input_bytes_max, config.artifacts.artifact_bytes_max
            ),
        )
        limits = WireLimits(input_bytes_max=config.jobs.input_bytes_max)
        return orchestrator.OrchestratorServicer(
            runtime, self._telemetry, limits, facts, explainer_of(runtime), kept
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
