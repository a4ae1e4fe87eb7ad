"""PoolRegistryService: GPU hosts register, take commands, send frames and report snapshots."""

import asyncio
from collections.abc import Iterable, Mapping

import grpc
import structlog

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from orchestrator_core import failpoints
from orchestrator_core.auth.caller import caller
from orchestrator_core.core.events import HostLost, HostRegistered
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.hosts.acks import SentAcks
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.registration import (
    POOLS_PER_HOST_MAX,
    Registration,
    check_not_taken,
    check_token_fits,
    not_a_register,
    unexpected_register,
)
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.frames import FrameReader
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire import dispatch as wire_dispatch
from orchestrator_core.wire.output_frames import OutputFrame, read_output_frame
from orchestrator_core.wire.snapshots import ID_CHARS_MAX, MalformedSnapshot, parse_snapshot

SERVICE = "llamaorch.pool.v1.PoolRegistryService"
_POINTS: Mapping[str | None, tuple[str, str]] = {
    "registered": ("send.verdicts.before", "send.verdicts.after"),
    "start": ("send.start.before", "send.start.after"),
    "cancel": ("send.cancel.before", "send.cancel.after"),
    "release": ("send.release.before", "send.release.after"),
}
_NO_POINTS = ("", "")

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
                "Dispatch": rpc.bidi(self.dispatch, pb.DispatchRequest, usual=read_output_frame),
                "ReportSnapshots": rpc.bidi(self.report_snapshots, pb.ReportSnapshotsRequest),
            },
        )

    async def dispatch(self, context: rpc.Context) -> None:
        """One host's stream, from its registration to its loss."""
        register = await self._registration(context)
        if register is None:
            return
        failpoints.reach("register.read")
        link = self._register(register)
        work = (
            _write(link, context),
            self._read(link, context),
            link.until_silent(),
            link.closed.wait(),
        )
        tasks = [asyncio.create_task(part) for part in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            why = _why(link, silent=tasks[2].done())
            for task in tasks:
                task.cancel()
            # Before anything is awaited: this task may be cancelled again.
            if self._runtime.hosts.disconnect(link):
                self._runtime.submit(HostLost(link.host_id, link.link_id))
                self._telemetry.host_down(link.host_id, why)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _registration(self, context: rpc.Context) -> dispatch_pb2.Register | None:
        """Reads all of the registration; None when the stream ends or falls silent before."""
        registration = Registration(self._terms)
        while not registration.complete:
            try:
                async with asyncio.timeout(self._terms.heartbeat_timeout_ms / 1000):
                    message = await rpc.read(context, pb.DispatchRequest, OutputFrame)
            except TimeoutError:
                return None
            if message is None:
                return None
            if isinstance(message, OutputFrame) or message.WhichOneof("message") != "register":
                raise not_a_register()
            registration.add(message.register)
        return registration.whole

    async def report_snapshots(self, context: rpc.Context) -> None:
        """Snapshots of one host; each report is acknowledged, malformed ones are named."""
        acks = SentAcks(self._runtime.clock.now_ms())
        ack_id = 0
        while (request := await rpc.read(context, pb.ReportSnapshotsRequest)) is not None:
            now_ms = self._runtime.clock.now_ms()
            # What a host sent after it had seen an acknowledgement is younger than that.
            rejections = self._take_report(request, acks.as_of_ms(request.echoed_ack_id))
            ack_id += 1
            acks.sent(ack_id, now_ms)
            await context.write(pb.ReportSnapshotsResponse(ack_id=ack_id, rejections=rejections))

    def _take_report(
        self, request: pb.ReportSnapshotsRequest, as_of_ms: int
    ) -> list[pb.SnapshotRejection]:
        link = self._runtime.hosts.links.get(request.host_id)
        if link is None or link.boot_id != request.boot_id or link.owner != caller().name:
            return []
        if len(request.pools) > POOLS_PER_HOST_MAX:
            reason = f"pools: at most {POOLS_PER_HOST_MAX} in one report"
            if link.may_log("report"):
                _log.warning(
                    "snapshot_refused",
                    host_id=link.host_id,
                    reason=reason,
                    human=f"A report of host {link.host_id} was refused: {reason}.",
                )
            return [pb.SnapshotRejection(reason=reason)]
        snapshots, rejections = _parse(request.pools, link.host_id, link)
        self._offer_again(link)
        link.hold_snapshots(snapshots, as_of_ms)
        self._show(link, request.pools, snapshots)
        for event in link.ripe_snapshots():
            self._runtime.submit(event)
        return rejections

    def _offer_again(self, link: HostLink) -> None:
        """Lets a host register anew once nothing is in the way of a pool that was refused."""
        core = self._runtime.core
        if any(core.pool_refusal(link.host_id, pool_id) is None for pool_id in link.refused):
            link.closed.set()

    def _register(self, register: dispatch_pb2.Register) -> HostLink:
        hosts = self._runtime.hosts
        check_token_fits(caller(), hosts.owner(register.host_id), register.host_id)
        last_dial = hosts.last_dial(register.host_id, register.boot_id)
        earlier = hosts.links.get(register.host_id)
        check_not_taken(earlier, last_dial, register)
        if earlier is not None:
            self._telemetry.host_down(register.host_id, "it opened another stream")
        snapshots, _ = _parse(register.pools, register.host_id)
        held = tuple(wire_dispatch.held_attempt(message) for message in register.held)
        link = HostLink(
            register.host_id,
            register.boot_id,
            self._next_link,
            self._terms,
            frozenset(snapshot.pool_id for snapshot in snapshots),
            register.dial_seq,
            owner=caller().name,
        )
        self._next_link += 1
        hosts.connect(link)
        self._runtime.submit(
            HostRegistered(
                link.host_id,
                link.link_id,
                snapshots,
                held,
                register.held_attempts_max,
                link.boot_id,
            )
        )
        hosts.keep_reported(self._runtime.core.pools)
        self._show(link, register.pools, snapshots)
        return link

    def _show(
        self,
        link: HostLink,
        messages: Iterable[snapshot_pb2.PoolSnapshot],
        good: Iterable[PoolSnapshot],
    ) -> None:
        """Shows metrics the raw snapshots, of what is fit to be believed."""
        pools = self._runtime.core.pools
        fit = {(snapshot.pool_id, snapshot.version) for snapshot in good}
        for message in messages:
            pool = pools.get(message.pool_id)
            mine = pool is not None and pool.snapshot.host_id == link.host_id
            if mine and (message.pool_id, message.version) in fit:
                self._runtime.hosts.reported[message.pool_id] = message
                self._telemetry.host_reported(message)

    async def _read(self, link: HostLink, context: rpc.Context) -> None:
        """Reads frames until the stream ends."""
        frames = FrameReader(self._runtime, link)
        while True:
            message = await rpc.read(context, pb.DispatchRequest, OutputFrame)
            if message is None or link.closed.is_set():
                # What came before a later stream of the host, and was not read by then, counts no
                # more: the core has settled its attempts by what that stream says.
                return
            link.heard()
            if isinstance(message, OutputFrame):
                frames.read_output(message)
                continue
            kind = message.WhichOneof("message")
            if kind == "frame":
                frames.read(message.frame)
            elif kind == "register":
                raise unexpected_register()


def _parse(
    messages: Iterable[snapshot_pb2.PoolSnapshot],
    host_id: str,
    link: HostLink | None = None,
) -> tuple[tuple[PoolSnapshot, ...], list[pb.SnapshotRejection]]:
    """Parses snapshots of one host; what is malformed or not its own is refused and named. LO-203.

    With `link`, pools that are not registered there are refused too.
    """
    good: list[PoolSnapshot] = []
    bad: list[pb.SnapshotRejection] = []
    for message in messages:
        parsed = parse_snapshot(message, host_id)
        if link is not None and message.pool_id not in link.pool_ids:
            why = link.refused.get(message.pool_id, "pool_id was not registered")
            parsed = MalformedSnapshot(message.pool_id[:ID_CHARS_MAX], why)
        if isinstance(parsed, MalformedSnapshot):
            bad.append(pb.SnapshotRejection(pool_id=parsed.pool_id, reason=parsed.reason))
        else:
            good.append(parsed)
    told = [one for one in bad if link is None or link.may_log(_log_key(link, one.pool_id))]
    if told:
        # One line for all of them: a report of a broken host may have many.
        _log.warning(
            "snapshot_refused",
            host_id=host_id,
            refused=len(bad),
            pool_id=told[0].pool_id,
            reason=told[0].reason,
            human=f"{len(bad)} pools of host {host_id} get no jobs from this report; one of them, "
            f"{told[0].pool_id}: {told[0].reason}.",
        )
    return tuple(good), bad


def _log_key(link: HostLink, pool_id: str) -> str:
    """A pool that is refused anew is told of although another one is refused for long."""
    return f"pool {pool_id}" if pool_id in link.pool_ids else "pools"


def _why(link: HostLink, *, silent: bool) -> str:
    if link.closed.is_set():
        return "closed from here"
    return "silent for too long" if silent else "the stream ended"


async def _write(link: HostLink, context: rpc.Context) -> None:
    """The only writer of the stream: concurrent writes would break it."""
    while True:
        command = await link.next_command()
        before, after = _POINTS.get(command.WhichOneof("command"), _NO_POINTS)
        if before:
            failpoints.reach(before)
        await context.write(command)
        if after:
            failpoints.reach(after)
