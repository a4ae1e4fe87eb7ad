"""The ReportSnapshots stream: on every change, and at least every report interval.

Design 5.4, LO-203.

A snapshot is built in the step that writes it, so what waits for a slow reader is only a set of
pool ids.
"""

import asyncio
from collections.abc import Callable

from grpc import aio

from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1.pool_registry_service_pb2_grpc import PoolRegistryServiceStub
from pool_managerd.auth.credentials import Metadata, why_ended
from pool_managerd.core.backoff import Backoff
from pool_managerd.errors import SessionLostError
from pool_managerd.link.streams import STREAM_ERRORS, Ending, together, written
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.snapshots import HostState, SnapshotBuilder
from pool_managerd.telemetry import log

ReportCall = aio.StreamStreamCall[
    registry_pb2.ReportSnapshotsRequest, registry_pb2.ReportSnapshotsResponse
]

MIN_GAP_MS = 2
"""Changes within this time of a report share the next one.

The first change after a pause goes at once.
"""

WRITE_TIMEOUT_MS = 10_000


class Reporter:
    """Reports the pools of a host to the orchestrator of the present session."""

    def __init__(
        self,
        host: HostState,
        snapshots: SnapshotBuilder,
        feed: ChangeFeed,
        backoff: Backoff,
        jitter: Callable[[], float],
    ) -> None:
        self._host = host
        self._snapshots = snapshots
        self._feed = feed
        self._backoff = backoff
        self._jitter = jitter
        self._echoed_ack_id = 0
        self._rejected: dict[str, str] = {}

    async def run(
        self, channel: aio.Channel, report_interval_ms: int, metadata: Metadata = ()
    ) -> None:
        """Keeps one stream open, and opens another with backoff when it ends; until cancelled."""
        stub = PoolRegistryServiceStub(channel)
        failures = 0
        while True:
            self._echoed_ack_id = 0
            self._rejected.clear()
            call: ReportCall = stub.ReportSnapshots(metadata=metadata)
            ending = Ending(call)
            try:
                await together(self._read(call), self._write(call, report_interval_ms))
            except STREAM_ERRORS as error:
                why = why_ended(await ending.error(error))
                log.warning(
                    "report_stream_lost",
                    reason=why,
                    human=f"Snapshots are not sent, which is tried again at once: {why}",
                )
            finally:
                call.cancel()
            failures = 1 if self._echoed_ack_id else failures + 1
            await asyncio.sleep(self._backoff.delay_ms(failures, self._jitter()) / 1000)

    async def _read(self, call: ReportCall) -> None:
        async for message in call:
            self._echoed_ack_id = message.ack_id
            for rejection in message.rejections:
                self._tell(rejection)
        raise SessionLostError("the orchestrator closed the report stream")

    def _tell(self, rejection: registry_pb2.SnapshotRejection) -> None:
        """Logs why a pool's snapshots are not taken: once, as every report gets the same answer."""
        pool_id, reason = rejection.pool_id, rejection.reason
        if self._rejected.get(pool_id) != reason:
            self._rejected[pool_id] = reason
            log.error(
                "snapshot_rejected",
                pool_id=pool_id,
                reason=reason,
                human=f"Pool {pool_id} gets no jobs: {reason}",
            )

    async def _write(self, call: ReportCall, report_interval_ms: int) -> None:
        loop = asyncio.get_running_loop()
        all_due_s = 0.0
        with self._feed.subscribe() as changes:
            changed = frozenset[str]()
            while True:
                if not changed or loop.time() >= all_due_s:
                    # Also those that do not change, however often others do.
                    changed, all_due_s = frozenset(), loop.time() + report_interval_ms / 1000
                await self._report(call, changed)
                await asyncio.sleep(MIN_GAP_MS / 1000)
                left_ms = max(0, int((all_due_s - loop.time()) * 1000))
                changed = await changes.next(left_ms)

    async def _report(self, call: ReportCall, changed: frozenset[str]) -> None:
        pools = self._snapshots.build(changed) if changed else self._snapshots.all()
        message = registry_pb2.ReportSnapshotsRequest(
            host_id=self._host.host_id,
            boot_id=self._host.boot_id,
            echoed_ack_id=self._echoed_ack_id,
            pools=pools,
        )
        async with asyncio.timeout(WRITE_TIMEOUT_MS / 1000):
            await written(call.write(message))
