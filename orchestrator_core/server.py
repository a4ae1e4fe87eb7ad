"""Composition root of orchestratord: builds the parts, runs them, drains them. ORCH-3035."""

import asyncio
import gc
import importlib.metadata
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator_core import failpoints
from orchestrator_core.auth.tls import ServerCertificates, TlsError, TlsFiles
from orchestrator_core.clock import Clock, SystemClock
from orchestrator_core.config import Config, core_config, tokens
from orchestrator_core.config_schema import CatalogTable, OutboundTable, loopback_bind
from orchestrator_core.core import placement
from orchestrator_core.core.events import DrainRequested
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outbound import OutboundPolicy
from orchestrator_core.errors import OrchestratorError
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts, ReportedFleet
from orchestrator_core.recorder.explaining import Explainer
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.served_facts import ServedFacts
from orchestrator_core.servicers import (
    catalog,
    orchestrator,
    policy,
    pool_admin,
    pool_registry,
    sessions,
)
from orchestrator_core.servicers.auth import TokenGate
from orchestrator_core.servicers.capabilities import ServerFacts
from orchestrator_core.servicers.outbound_judge import (
    NoSuchPolicyError,
    OutboundJudge,
    outbound_policy,
)
from orchestrator_core.servicers.signatures import NoSignaturesError, Signatures
from orchestrator_core.status.page import StatusPage
from orchestrator_core.status.reading import StatusReader
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import (
    Keep,
    Opened,
    Store,
    StoreError,
    StoreUnavailableError,
)
from orchestrator_core.store.sqlite import SqliteStore
from orchestrator_core.telemetry.measured_store import MeasuredStore
from orchestrator_core.telemetry.observer import Telemetry
from orchestrator_core.wire.jobs import WireLimits

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 1_024
# gRPC ends calls at random, with CANCELLED and without details, while more than so many wait to be
# taken up, and all beyond the second number. Its defaults, 1,000 and 3,000, are a burst that two
# clients may send, and on a starved machine a few seconds of calls; each takes some kilobytes.
PENDING_CALLS_MAX = 4 * STREAMS_PER_CONNECTION_MAX
PENDING_CALLS_END = 2 * PENDING_CALLS_MAX
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
    # The probe lets a stream run up megabytes that nobody has read yet. Under overload that is many
    # seconds of frames, behind which snapshots wait until they are stale. Without it 64 KiB are on
    # the way, and a host that is ahead gathers its output in fewer, larger chunks.
    ("grpc.http2.bdp_probe", 0),
)

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
    """One orchestratord. `start`, then `stop`; both once. `store` replaces the configured one."""

    def __init__(self, config: Config, store: Store | None = None) -> None:
        self._config = config
        self._hosts = Hosts()
        self._telemetry = Telemetry.from_config(config, fleet=ReportedFleet(self._hosts))
        self._store: Store = MeasuredStore(store or _store(config), self._telemetry.committed)
        self._judge = OutboundJudge(OutboundPolicy())
        self._signatures = Signatures({})
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=self._gates())
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self._runtime: Runtime | None = None
        self._jobs: orchestrator.OrchestratorServicer | None = None
        self.address = Address("", 0)
        self.metrics_port: int | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime, once started."""
        assert self._runtime is not None, "start() comes first"
        return self._runtime

    async def start(self) -> None:
        """Takes the address, recovers the journal and begins to serve.

        Raises:
            CannotStartError: when the address is not free, or the outbound policy not there;
                nothing was written then.
            StoreError: when the journal cannot be opened.
            OSError: when the metrics address is not free.
        """
        self._judge = _judge(self._config.outbound)
        self._signatures = _signatures(self._config.catalog)
        self._listen()
        opened = await self._store.open()
        failpoints.reach("journal.opened")
        clock = SystemClock(opened.last_ms)
        self._runtime = runtime = self._build(clock)
        self._jobs = jobs_servicer = self._jobs_servicer(runtime)
        self.metrics_port = metrics_port = await self._telemetry.start(
            runtime.core,
            ServedFacts(self._config, runtime, CORE_FORM).read,
            self._status_routes(runtime, jobs_servicer),
        )
        runtime.recover(opened.recovered)
        await self._serve(runtime, opened, jobs_servicer)
        self._tasks = [
            asyncio.create_task(runtime.run(), name="commit"),
            asyncio.create_task(runtime.watch_pauses(), name="pauses"),
            asyncio.create_task(self._prune(runtime), name="prune"),
        ]
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

    def _gates(self) -> tuple[TokenGate, ...]:
        """Without tokens nobody is asked for one, and calls do not take the way through a chain."""
        known = tokens(self._config)
        return (TokenGate(known, self._telemetry.watched),) if known else ()

    def _build(self, clock: Clock) -> Runtime:
        jobs = self._config.jobs
        relay = Relay(RelayLimits(jobs.output_bytes_per_job, jobs.output_bytes_total))
        settings = _recorder(self._config, clock.now_ms())
        bounds = core_config(self._config)
        core = Core(bounds) if settings is None else RecordedCore(bounds, settings)
        return Runtime(core, self._store, clock, relay, self._hosts, self._telemetry)

    def _jobs_servicer(self, runtime: Runtime) -> orchestrator.OrchestratorServicer:
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
            runtime, self._telemetry, limits, facts, _explainer(runtime)
        )

    def _status_routes(
        self, runtime: Runtime, jobs: orchestrator.OrchestratorServicer
    ) -> list[web.RouteDef]:
        if not self._config.status_page:
            return []
        reader = StatusReader(runtime, importlib.metadata.version("llamaorch"))
        return StatusPage(reader.read, jobs.explain).routes()

    async def _serve(
        self, runtime: Runtime, opened: Opened, jobs: orchestrator.OrchestratorServicer
    ) -> None:
        config = self._config
        terms = LinkTerms(
            epoch=opened.epoch,
            journal_id=opened.journal_id,
            report_interval_ms=config.pools.report_interval_ms,
            heartbeat_timeout_ms=config.pools.heartbeat_timeout_ms,
            send_window_bytes=config.pools.send_window_bytes,
            reattach_grace_ms=config.pools.reattach_grace_ms,
        )
        servicers = (
            jobs,
            pool_admin.PoolAdminServicer(runtime, self._telemetry, config.pools),
            sessions.SessionServicer(runtime),
            catalog.CatalogServicer(
                runtime, self._telemetry, self._signatures, config.catalog.retire_grace_ms
            ),
            policy.PolicyServicer(runtime, self._telemetry, self._judge),
            pool_registry.PoolRegistryServicer(runtime, self._telemetry, terms),
        )
        watched = self._telemetry.watched
        self._server.add_generic_rpc_handlers([watched(each.handlers()) for each in servicers])
        names = (
            orchestrator.SERVICE,
            pool_admin.SERVICE,
            sessions.SERVICE,
            catalog.SERVICE,
            policy.SERVICE,
            pool_registry.SERVICE,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._server.start()

    async def _prune(self, runtime: Runtime) -> None:
        """Deletes from the journal what nobody may ask for any more, or what is too much."""
        while True:
            await asyncio.sleep(self._config.store.prune_every_ms / 1000)
            jobs = self._config.jobs
            # A repeated request must find its first answer, also after a restart.
            kept_ms = max(jobs.retention_ms, jobs.idempotency_ttl_ms)
            keep = Keep(
                ended_since_ms=runtime.clock.now_ms() - kept_ms,
                ended_max=max(jobs.finished_max, jobs.idempotency_max),
                ended_min=jobs.finished_max,
                bytes_max=self._config.store.bytes_max,
            )
            failpoints.reach("prune.before")
            try:
                await self._store.prune(keep)
            except StoreUnavailableError as error:
                _log.warning(
                    "prune_failed",
                    error=str(error),
                    human="Old jobs could not be deleted from the journal; it is tried again.",
                )
            failpoints.reach("prune.after")


def _judge(table: OutboundTable) -> OutboundJudge:
    try:
        patterns = outbound_policy(table.allow, table.deny, enabled=table.enabled)
        return OutboundJudge(patterns, table.policy)
    except NoSuchPolicyError as error:
        raise CannotStartError(str(error)) from error


def _signatures(table: CatalogTable) -> Signatures:
    try:
        return Signatures(table.trusted_keys)
    except NoSignaturesError as error:
        raise CannotStartError(str(error)) from error


def _store(config: Config) -> Store:
    if config.store.kind == "memory":
        return MemoryStore()
    return SqliteStore(Path(config.store.path), free_bytes_kept=config.store.free_bytes_kept)


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


async def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once."""
    server = OrchestratorServer(config)
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled(first, second))
    try:
        try:
            await server.start()
        except (StoreError, OSError) as error:
            raise CannotStartError(str(error)) from error
        # What is here now stays: looks for cyclic garbage need not walk it over and over.
        gc.collect()
        gc.freeze()
        await _first_of(first.wait(), server.wait_failed())
        grace_s = config.shutdown_grace_ms / 1000
        await _first_of(server.drain(grace_s), second.wait(), server.wait_failed())
    finally:
        await server.stop()
        _log.info("stopped", human="orchestratord has stopped.")


def _signalled(first: asyncio.Event, second: asyncio.Event) -> Callable[[], None]:
    def handle() -> None:
        (second if first.is_set() else first).set()

    return handle


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    """Returns, or raises, as the first of several waits does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
