"""All hosts that are connected, and the last raw snapshots of their pools."""

import asyncio
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.effects import (
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.spec import StartMode
from orchestrator_core.hosts.bindings import AttemptKey
from orchestrator_core.hosts.link import HostLink
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.relay import Relay
from orchestrator_core.telemetry.fleet import PoolGauges, pool_gauges
from orchestrator_core.wire.dispatch import Delivered

if TYPE_CHECKING:
    from llamaorch.pool.v1 import snapshot_pb2


# So many runs of pool managers are remembered, the latest: far more than there are hosts.
DIALS_KEPT = 8_192


class Hosts:
    """Routes commands to the link of a host.

    A command for a host without one is dropped: the core learns of it by the host's absence or its
    next registration.
    """

    def __init__(self) -> None:
        self.links: dict[str, HostLink] = {}
        self.reported: dict[str, snapshot_pb2.PoolSnapshot] = {}
        self._dials: dict[tuple[str, str], int] = {}
        self._owners: dict[str, str] = {}
        self._arrival = asyncio.Event()

    def connect(self, link: HostLink) -> None:
        """Makes a link the one of its host; an earlier one ends."""
        earlier = self.links.get(link.host_id)
        if earlier is not None:
            earlier.closed.set()
        self.links[link.host_id] = link
        run = (link.host_id, link.boot_id)
        # The run that registered last is the last to be forgotten.
        self._dials[run] = max(self._dials.pop(run, 0), link.dial_seq)
        if len(self._dials) > DIALS_KEPT:
            del self._dials[next(iter(self._dials))]
        self._owners.pop(link.host_id, None)
        self._owners[link.host_id] = link.owner
        if len(self._owners) > DIALS_KEPT:
            del self._owners[next(iter(self._owners))]
        self._arrival.set()
        self._arrival = asyncio.Event()

    def owner(self, host_id: str) -> str:
        """Whose token registered a host last, in this run; empty where nobody did.

        The latest `DIALS_KEPT` hosts are remembered.
        """
        return self._owners.get(host_id, "")

    async def arrival(self) -> None:
        """Returns when the next host registers, whichever it is."""
        await self._arrival.wait()

    def last_dial(self, host_id: str, boot_id: str) -> int:
        """Number of the latest stream that a run of a pool manager registered; 0: none is known.

        Also when that has ended: a registration may be under way for longer than its successor.
        """
        return self._dials.get((host_id, boot_id), 0)

    def disconnect(self, link: HostLink) -> bool:
        """Forgets a link; False, and nothing done, where another took its place."""
        if self.links.get(link.host_id) is not link:
            return False
        del self.links[link.host_id]
        return True

    def keep_reported(self, pool_ids: Container[str]) -> None:
        """Forgets the last snapshots of pools that are gone."""
        for pool_id in [p for p in self.reported if p not in pool_ids]:
            del self.reported[pool_id]

    def send_verdicts(self, effect: SendVerdicts, relay: Relay) -> None:
        """Answers a registration."""
        link = self.links.get(effect.host_id)
        if link is not None and link.link_id == effect.link_id:
            link.registered(effect, relay)

    def start(
        self,
        effect: SendStart,
        log: OutputLog,
        traceparent: str,
        follows: Delivered | None = None,
    ) -> None:
        """Sends an attempt. A replay is told what is held; if that is not known, readers check."""
        link = self.links.get(effect.host_id)
        if link is None:
            return
        resume = None
        digest = log.digest() if effect.mode is StartMode.VERIFIED_REPLAY else None
        if digest is not None and log.next_offset:
            resume = events_pb2.ResumePoint(
                attempt=log.attempt, text_offset=log.next_offset, prefix_digest=digest
            )
        link.start(effect, log, resume, traceparent, follows)

    def bound(self, host_id: str, key: AttemptKey) -> bool:
        """True when an attempt was sent to a host, or adopted from it, on its present stream."""
        link = self.links.get(host_id)
        return link is not None and link.bound(key)

    def counts(self, host_id: str, key: AttemptKey) -> bool:
        """True while frames of an attempt are taken from a host."""
        link = self.links.get(host_id)
        return link is not None and link.counts(key)

    def bind_again(self, host_id: str, key: AttemptKey) -> None:
        """Takes the frames of an attempt again that `unbind` let drop, if its host is here."""
        link = self.links.get(host_id)
        if link is not None:
            link.bind_again(key)

    def send_again(self, host_id: str, key: AttemptKey, first_index: int) -> int | None:
        """See `HostLink.send_again`."""
        link = self.links.get(host_id)
        return None if link is None else link.send_again(key, first_index)

    def cancel(self, effect: SendCancel) -> None:
        """Stops an attempt."""
        link = self.links.get(effect.host_id)
        if link is not None:
            key = effect.job_id, effect.attempt
            link.cancel(key, job_cancelled=effect.job_cancelled)

    def release(self, effect: SendRelease) -> None:
        """Lets a host forget an attempt."""
        link = self.links.get(effect.host_id)
        if link is not None:
            link.release((effect.job_id, effect.attempt))

    def drain(self, effect: SendDrain) -> None:
        """Lets a host drain a pool, or take work again."""
        link = self.links.get(effect.host_id)
        if link is not None:
            link.drain(effect.pool_id, effect.left_ms)

    def unbind(self, job_id: str, attempt: int) -> None:
        """Drops the frames of an attempt wherever it runs."""
        for link in self.links.values():
            link.unbind((job_id, attempt))


class ReportedFleet:
    """The last snapshots as metrics see them."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def pools(self) -> Iterable[PoolGauges]:
        """The load of every pool whose host is connected: of others it is not known."""
        links = self._hosts.links
        return [
            pool_gauges(snapshot)
            for snapshot in self._hosts.reported.values()
            if snapshot.host_id in links
        ]
