"""PoolRegistryService: GPU hosts register, take commands, send frames and report snapshots."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

import grpc
import structlog

from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.events import HostLost, HostRegistered
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.core.pool import PoolSnapshot
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.frames import FrameReader
from orchestrator_core.telemetry.observer import Telemetry
from orchestrator_core.wire import dispatch as wire_dispatch
from orchestrator_core.wire.snapshots import MalformedSnapshot, parse_snapshot

SERVICE = "llamaorch.pool.v1.PoolRegistryService"
ACKS_KEPT = 16
POOLS_PER_HOST_MAX = 256
HELD_MAX = 100_000

_log = structlog.get_logger("orchestratord")


class PoolRegistryServicer:
    """The orchestrator's end of every host's streams."""

    def __init__(self, runtime: Runtime, telemetry: Telemetry, terms: LinkTerms) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self._terms = terms
        self._next_link = 1

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Dispatch": rpc.bidi(self.dispatch, pb.DispatchRequest),
                "ReportSnapshots": rpc.bidi(self.report_snapshots, pb.ReportSnapshotsRequest),
            },
        )

    async def dispatch(self, context: rpc.Context) -> None:
        """One host's stream, from its registration to its loss."""
        first = await self._first(context)
        if first is None:
            return
        link = self._register(first)
        writer = asyncio.create_task(_write(link, context))
        reader = asyncio.create_task(self._read(link, context))
        superseded = asyncio.create_task(link.closed.wait())
        tasks = (writer, reader, superseded)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._runtime.hosts.disconnect(link)
            self._runtime.submit(HostLost(link.host_id, link.link_id))
            why = "closed from here" if link.closed.is_set() else "the stream ended"
            self._telemetry.host_down(link.host_id, why)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _first(self, context: rpc.Context) -> pb.DispatchRequest | None:
        """Waits for the registration; a stream that opens and stays silent is closed."""
        try:
            async with asyncio.timeout(self._terms.heartbeat_timeout_ms / 1000):
                return await rpc.read(context, pb.DispatchRequest)
        except TimeoutError:
            return None

    async def report_snapshots(self, context: rpc.Context) -> None:
        """Snapshots of one host; each report is acknowledged, malformed ones are named."""
        sent_ms: OrderedDict[int, int] = OrderedDict()
        ack_id = 0
        while (request := await rpc.read(context, pb.ReportSnapshotsRequest)) is not None:
            now_ms = self._runtime.clock.now_ms()
            # What a host sent after it had seen an acknowledgement is younger than that.
            as_of_ms = sent_ms.get(request.echoed_ack_id, now_ms)
            rejections = self._take_report(request, as_of_ms)
            ack_id += 1
            sent_ms[ack_id] = now_ms
            if len(sent_ms) > ACKS_KEPT:
                sent_ms.popitem(last=False)
            await context.write(pb.ReportSnapshotsResponse(ack_id=ack_id, rejections=rejections))

    def _take_report(
        self, request: pb.ReportSnapshotsRequest, as_of_ms: int
    ) -> list[pb.SnapshotRejection]:
        snapshots, rejections = self._parse(request.pools)
        link = self._runtime.hosts.links.get(request.host_id)
        if link is not None and link.boot_id == request.boot_id:
            link.hold_snapshots(snapshots, as_of_ms)
            self._show(request.pools)
            for event in link.ripe_snapshots():
                self._runtime.submit(event)
        return rejections

    def _parse(
        self, messages: Iterable[snapshot_pb2.PoolSnapshot]
    ) -> tuple[tuple[PoolSnapshot, ...], list[pb.SnapshotRejection]]:
        """Parses snapshots; what is malformed is refused and named. LO-203."""
        good: list[PoolSnapshot] = []
        bad: list[pb.SnapshotRejection] = []
        for message in messages:
            parsed = parse_snapshot(message)
            if isinstance(parsed, MalformedSnapshot):
                bad.append(pb.SnapshotRejection(pool_id=parsed.pool_id, reason=parsed.reason))
                _log.warning("snapshot_refused", pool_id=parsed.pool_id, reason=parsed.reason)
            else:
                good.append(parsed)
        return tuple(good), bad

    def _show(self, messages: Iterable[snapshot_pb2.PoolSnapshot]) -> None:
        """Keeps the raw snapshots of registered pools, for the facts that no decision needs."""
        for message in messages:
            if message.pool_id in self._runtime.core.pools:
                self._runtime.hosts.reported[message.pool_id] = message

    def _register(self, first: pb.DispatchRequest) -> HostLink:
        register = first.register
        self._check(first)
        link = HostLink(register.host_id, register.boot_id, self._next_link, self._terms)
        self._next_link += 1
        self._runtime.hosts.connect(link)
        snapshots, _ = self._parse(register.pools)
        held = tuple(wire_dispatch.held_attempt(message) for message in register.held)
        self._runtime.submit(HostRegistered(link.host_id, link.link_id, snapshots, held))
        self._show(register.pools)
        return link

    def _check(self, first: pb.DispatchRequest) -> None:
        """Refuses a stream that does not begin with a registration fit to be obeyed."""
        register = first.register
        bad = []
        if first.WhichOneof("message") != "register":
            bad.append(FieldViolation("message", "the first message must be `register`"))
        elif not register.host_id or not register.boot_id:
            bad.append(FieldViolation("register", "host_id and boot_id must be set"))
        elif len(register.pools) > POOLS_PER_HOST_MAX or len(register.held) > HELD_MAX:
            limits = f"at most {POOLS_PER_HOST_MAX} pools and {HELD_MAX} held attempts"
            bad.append(FieldViolation("register", limits))
        elif register.epoch > self._terms.epoch:
            seen = f"the host has seen epoch {register.epoch}, this orchestrator is older: "
            bad.append(FieldViolation("register.epoch", f"{seen}{self._terms.epoch}"))
        if bad:
            text = "the registration cannot be accepted"
            raise RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=tuple(bad)))

    async def _read(self, link: HostLink, context: rpc.Context) -> None:
        """Reads frames until the stream ends or falls silent for too long."""
        frames = FrameReader(self._runtime, link)
        silence_s = link.terms.heartbeat_timeout_ms / 1000
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await rpc.read(context, pb.DispatchRequest)
            except TimeoutError:
                return
            if message is None:
                return
            if message.WhichOneof("message") == "frame":
                frames.read(message.frame)


async def _write(link: HostLink, context: rpc.Context) -> None:
    """The only writer of the stream: concurrent writes would break it."""
    while True:
        await context.write(await link.next_command())
