"""PoolManagerService: inspection of this host. It takes no work."""

import asyncio
import uuid
from collections.abc import Callable, Mapping

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from pool_managerd.auth.credentials import ServerCertificates
from pool_managerd.auth.gate import ERROR_DOMAIN, TokenGate
from pool_managerd.binding import refusal, unbindable
from pool_managerd.clock import Clock
from pool_managerd.config.schema import Config
from pool_managerd.config.security import TokenTable, loopback
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.snapshots import SnapshotBuilder
from pool_managerd.telemetry import log

WATCH_GAP_MS = 20
"""Changes within this time of a message share the next one."""
WRITE_TIMEOUT_MS = 10_000
"""Longest wait for a reader of snapshots."""
CORRELATION_ID = "x-correlation-id"
CORRELATION_ID_MAX = 128
NOT_RETRIABLE = {"retriable": "false"}
SERVICE_NAME = manager_pb2.DESCRIPTOR.services_by_name["PoolManagerService"].full_name

_Context = aio.ServicerContext[object, object]


class Undecodable:
    """Stands for a request whose bytes are not the message they should be."""


class PoolManagerServicer:
    """Serves snapshots to whoever looks at this host."""

    def __init__(self, snapshots: SnapshotBuilder, feed: ChangeFeed, keepalive_ms: int) -> None:
        self._snapshots = snapshots
        self._feed = feed
        self._keepalive_ms = keepalive_ms

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        get = grpc.unary_unary_rpc_method_handler(
            self.get_snapshots,
            request_deserializer=_decoder(manager_pb2.GetSnapshotsRequest),
            response_serializer=manager_pb2.GetSnapshotsResponse.SerializeToString,
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self.watch_snapshots,
            request_deserializer=_decoder(manager_pb2.WatchSnapshotsRequest),
            response_serializer=manager_pb2.WatchSnapshotsResponse.SerializeToString,
        )
        methods = {"GetSnapshots": get, "WatchSnapshots": watch}
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def get_snapshots(
        self, request: Message | Undecodable, context: _Context
    ) -> manager_pb2.GetSnapshotsResponse:
        """Returns the pools of this host."""
        await _begin(request, context)
        return manager_pb2.GetSnapshotsResponse(pools=self._snapshots.all())

    async def watch_snapshots(self, request: Message | Undecodable, context: _Context) -> None:
        """Streams all pools first, then each change.

        All of them again when nothing changed for long. A reader that takes nothing for
        `WRITE_TIMEOUT_MS` is let go: it holds one of few places.
        """
        await _begin(request, context)
        if self._feed.full:
            await _abort_full(context)
        with self._feed.watch() as changes:
            pools = self._snapshots.all()
            while await _taken(context, manager_pb2.WatchSnapshotsResponse(pools=pools)):
                await asyncio.sleep(WATCH_GAP_MS / 1000)
                changed = await changes.next(self._keepalive_ms)
                pools = self._snapshots.build(changed) if changed else self._snapshots.all()


async def _taken(context: _Context, message: Message) -> bool:
    """Writes a message; False when the reader has not taken those before it in time."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_MS / 1000):
            await context.write(message)
    except TimeoutError:
        return False
    return True


def _decoder(request: type[Message]) -> Callable[[bytes], Message | Undecodable]:
    def decode(data: bytes) -> Message | Undecodable:
        try:
            return request.FromString(data)
        except DecodeError:
            return Undecodable()

    return decode


async def _begin(request: Message | Undecodable, context: _Context) -> None:
    """Returns the correlation id, and refuses what is not the message of the call."""
    await _return_correlation_id(context)
    if isinstance(request, Undecodable):
        text = "the request is not the message that this call takes"
        await _abort(context, code_pb2.INVALID_ARGUMENT, "INVALID_PARAMS", text)


async def _return_correlation_id(context: _Context) -> None:
    """Returns the caller's correlation id, or a new one when there is none that may be logged.

    HME-030.
    """
    given = dict(context.invocation_metadata() or ()).get(CORRELATION_ID, "")
    text = given if isinstance(given, str) else ""
    usable = 0 < len(text) <= CORRELATION_ID_MAX and text.isascii() and text.isprintable()
    await context.send_initial_metadata(((CORRELATION_ID, text if usable else uuid.uuid4().hex),))


async def _abort_full(context: _Context) -> None:
    labels = {"policy_label": "watchers_max", "retriable": "true"}
    text = "too many WatchSnapshots calls are open"
    await _abort(context, code_pb2.RESOURCE_EXHAUSTED, "ADMISSION_REJECT", text, labels)


async def _abort(
    context: _Context,
    code: code_pb2.Code.ValueType,
    reason: str,
    text: str,
    metadata: Mapping[str, str] = NOT_RETRIABLE,
) -> None:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = rpc_status.to_status(status_pb2.Status(code=code, message=text, details=[detail]))
    await context.abort(status.code, status.details, status.trailing_metadata)


class InspectionServer:
    """The gRPC server of this host: inspection, health and reflection."""

    def __init__(self, config: Config, servicer: PoolManagerServicer, clock: Clock) -> None:
        self._listen = config.listen
        self._tls = config.tls
        tokens = config.auth.tokens
        self._gate = TokenGate(tokens, clock) if tokens else None
        gates = () if self._gate is None else (self._gate,)
        self._server = aio.server(options=SERVER_OPTIONS, interceptors=gates)
        self._health = health.aio.HealthServicer()
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = ""

    def use_tokens(self, tokens: Mapping[str, TokenTable]) -> None:
        """Takes these tokens from now on, where callers are asked for one at all."""
        if self._gate is not None:
            self._gate.use(tokens)

    async def start(self) -> None:
        """Binds and serves; `address` then names the port that was bound.

        Raises:
            OSError: when the address cannot be bound.
            ConfigError: when its certificate cannot be used.
        """
        host = self._listen.rpartition(":")[0]
        if (taken := unbindable(self._listen)) is not None:
            raise OSError(refusal("listen", self._listen, taken))
        try:
            if self._tls.certificate:
                credentials = ServerCertificates(self._tls).credentials()
                port = self._server.add_secure_port(self._listen, credentials)
            else:
                port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"listen: cannot listen on {self._listen}: {error}") from error
        self.address = f"{host}:{port}"
        if not self._tls.certificate and not loopback(self._listen):
            log.warning(
                "plaintext",
                address=self.address,
                human="Tokens pass in the clear: tls.allow_plaintext is set.",
            )
        await self._server.start()
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("listening", address=self.address, human=f"Inspection at {self.address}.")

    async def leave(self) -> None:
        """Health says NOT_SERVING from here on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_ms: int) -> None:
        """Ends open calls after `grace_ms` and waits for the end. Idempotent."""
        await self._server.stop(grace_ms / 1000)


SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_allowed_incoming_connections", 400),
)
"""Pings every 5 s are allowed.

Silent peers are found within 30 s, who does not go on within 20 s, who asks nothing within ten
minutes; one peer cannot crowd out others, and all together cannot take all open files.
"""
