"""One open Dispatch stream: commands to a host, bindings of handles, bounds."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2, pool_registry_service_pb2
from orchestrator_core.core.effects import SendStart, SendVerdicts, Verdict
from orchestrator_core.core.events import SnapshotsReported
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.hosts.bindings import AttemptKey, Binding, Bindings
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.relay import Relay
from orchestrator_core.wire import dispatch as wire_dispatch

OUTBOX_MAX = 10_000
# Text that does not fill a quarter of the window is acknowledged after this time: else a piece that
# is larger than what is left of the window would wait for ever.
ACK_DELAY_S = 0.1
# Hosts report every second, for weeks: what is wrong with their reports is logged this often.
LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What a host is told when it registers. Times in milliseconds."""

    epoch: int
    report_interval_ms: int
    heartbeat_timeout_ms: int
    send_window_bytes: int
    journal_id: str = ""
    reattach_grace_ms: int = 0


@dataclass(slots=True)
class HostLink:
    """The state of one stream. Not safe for threads: it lives on the event loop.

    `pool_ids` are the pools that the host registered, `dial_seq` says which stream of its boot this
    is (0: not told), `owner` is the name of the token that opened it. `refused` are pools that it
    could not register, with the reason. `reloads` has the id of the last reload of each pool that
    was asked for here. `closed` is set when the link is superseded or broken; its tasks then end.
    """

    host_id: str
    boot_id: str
    link_id: int
    terms: LinkTerms
    pool_ids: frozenset[str] = frozenset()
    dial_seq: int = 0
    owner: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    reloads: dict[str, str] = field(default_factory=dict)
    frame_seq: int = 0
    heard_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    bindings: Bindings = field(init=False)
    _outbox: deque[pool_registry_service_pb2.DispatchResponse] = field(default_factory=deque)
    _filled: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: dict[str, list[tuple[PoolSnapshot, int]]] = field(default_factory=dict)
    _logged_s: dict[str, float] = field(default_factory=dict)
    _acks_planned: bool = False
    _next_seq: int = 1

    def __post_init__(self) -> None:
        """Makes the table of handles."""
        self.bindings = Bindings(self.terms.send_window_bytes // 4)

    # --- signs of life

    @property
    def alive(self) -> bool:
        """False once the link is closed, or when nothing was heard for the heartbeat timeout."""
        silent_s = asyncio.get_running_loop().time() - self.heard_s
        return not self.closed.is_set() and silent_s < self.terms.heartbeat_timeout_ms / 1000

    def heard(self) -> None:
        """Notes a message of the host."""
        self.heard_s = asyncio.get_running_loop().time()

    async def until_silent(self) -> None:
        """Returns when the host has been silent for the heartbeat timeout.

        Silence counts only while this side could listen: after a stall of the event loop, seen by a
        late wake-up, the host gets a fresh interval.
        """
        loop = asyncio.get_running_loop()
        interval_s = self.terms.heartbeat_timeout_ms / 3000
        while self.alive:
            due_s = loop.time() + interval_s
            await asyncio.sleep(interval_s)
            if loop.time() - due_s > interval_s / 2:
                self.heard()

    def may_log(self, what: str) -> bool:
        """True once in `LOG_EVERY_S` for each kind of trouble with the host's reports."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._logged_s.get(what, -LOG_EVERY_S) < LOG_EVERY_S:
            return False
        self._logged_s[what] = now_s
        return True

    # --- commands

    def send(self, command: pool_registry_service_pb2.DispatchResponse) -> None:
        """Queues a command. A host that lets commands pile up beyond the bound is given up."""
        command.dispatch_seq = self._next_seq
        self._next_seq += 1
        if len(self._outbox) >= OUTBOX_MAX:
            self.closed.set()
            return
        self._outbox.append(command)
        self._filled.set()

    async def next_command(self) -> pool_registry_service_pb2.DispatchResponse:
        """Next command to write; an empty one when nothing was sent for a third of the timeout."""
        if not self._outbox:
            self._filled.clear()
            try:
                async with asyncio.timeout(self.terms.heartbeat_timeout_ms / 3000):
                    await self._filled.wait()
            except TimeoutError:
                # What was queued in this very moment goes first: its number must not.
                if not self._outbox:
                    last_seq = self._next_seq - 1
                    return pool_registry_service_pb2.DispatchResponse(dispatch_seq=last_seq)
        return self._outbox.popleft()

    def registered(self, effect: SendVerdicts, relay: Relay) -> None:
        """Answers the registration: the first command on the stream."""
        self.refused = dict(effect.refused)
        self.pool_ids -= self.refused.keys()
        adoptions: dict[AttemptKey, wire_dispatch.Adoption] = {}
        for job_id, attempt, verdict in effect.verdicts:
            if verdict is Verdict.ADOPT:
                log = relay.log(job_id)
                if attempt > log.attempt:
                    # An earlier one is kept as a proof: what it has must not displace this one's.
                    log.begin_attempt(attempt)
                binding = self.bindings.bind((job_id, attempt))
                # An adopted attempt is sent from here on, or from the first that is held.
                binding.asked_offset = log.next_offset
                adoption = wire_dispatch.Adoption(binding.handle, log.next_index)
                adoptions[(job_id, attempt)] = adoption
        terms = self.terms
        self.send(
            pool_registry_service_pb2.DispatchResponse(
                registered=dispatch_pb2.Registered(
                    epoch=terms.epoch,
                    verdicts=wire_dispatch.verdicts_to_proto(effect, adoptions),
                    report_interval_ms=terms.report_interval_ms,
                    send_window_bytes=terms.send_window_bytes,
                    heartbeat_timeout_ms=terms.heartbeat_timeout_ms,
                    journal_id=terms.journal_id,
                    reattach_grace_ms=terms.reattach_grace_ms,
                )
            )
        )

    def start(
        self,
        effect: SendStart,
        log: OutputLog,
        resume: events_pb2.ResumePoint | None,
        traceparent: str,
        follows: wire_dispatch.Delivered | None = None,
    ) -> None:
        """Sends an attempt; from now on only its output is taken for the job."""
        handle = self.bindings.bind((effect.spec.job_id, effect.attempt)).handle
        log.begin_attempt(effect.attempt)
        message = wire_dispatch.start_to_proto(effect, handle, resume, traceparent, follows)
        self.send(pool_registry_service_pb2.DispatchResponse(start=message))

    def bound(self, key: AttemptKey) -> bool:
        """True when cancel and release find a handle for an attempt."""
        return self.bindings.handle(key) is not None

    def cancel(self, key: AttemptKey, *, job_cancelled: bool = False) -> None:
        """Stops an attempt, if it is bound on this stream; see `SendCancel`."""
        handle = self.bindings.handle(key)
        if handle is not None:
            cancel = dispatch_pb2.CancelAttempt(handle=handle, job_cancelled=job_cancelled)
            self.send(pool_registry_service_pb2.DispatchResponse(cancel=cancel))

    def release(self, key: AttemptKey) -> None:
        """Lets the host forget an attempt, if it is bound on this stream."""
        handle = self.bindings.release(key)
        if handle is not None:
            release = dispatch_pb2.ReleaseAttempts(handles=[handle])
            self.send(pool_registry_service_pb2.DispatchResponse(release=release))

    def unbind(self, key: AttemptKey) -> None:
        """Drops the frames of an attempt from now on; cancel and release still find its handle."""
        self.bindings.unbind(key)

    def bind_again(self, key: AttemptKey) -> None:
        """Takes the frames of an attempt again that were dropped, if it is bound on this stream."""
        self.bindings.bind_again(key)

    def seek(self, binding: Binding, first_index: int, text_offset: int) -> None:
        """Asks for output again after a gap; once per place, so that a broken host cannot loop."""
        if binding.asked_offset != text_offset:
            # The host's window begins anew at the place that is sought.
            binding.acked_offset = 0
            binding.asked_seq = self._send_seek(binding.handle, first_index)
            binding.asked_offset = text_offset

    def counts(self, key: AttemptKey) -> bool:
        """True while frames of an attempt are taken here."""
        return self.bindings.by_key(key) is not None

    def send_again(self, key: AttemptKey, first_index: int) -> int | None:
        """Asks for output from a piece on, for a side read or after it; the command's number.

        None when the attempt is not bound here.
        """
        binding = self.bindings.by_key(key)
        if binding is None:
            return None
        # As in `seek`: what was acknowledged before must not open the new window.
        binding.acked_offset = binding.read_offset = 0
        return self._send_seek(binding.handle, first_index)

    def _send_seek(self, handle: int, first_index: int) -> int:
        seek = dispatch_pb2.SeekTokens(handle=handle, first_index=first_index)
        command = pool_registry_service_pb2.DispatchResponse(seek=seek)
        self.send(command)
        return command.dispatch_seq

    def drain(self, pool_id: str, left_ms: int | None) -> None:
        """Lets a pool drain for so long at most; None: it takes work again."""
        draining = dispatch_pb2.SetPoolDraining(
            pool_id=pool_id, draining=left_ms is not None, timeout_ms=left_ms
        )
        self.send(pool_registry_service_pb2.DispatchResponse(set_draining=draining))

    def reload(self, pool_id: str, reload_id: str, model_ref: str, timeout_ms: int) -> None:
        """Lets a pool load its model anew, or another one."""
        self.reloads[pool_id] = reload_id
        reload = dispatch_pb2.ReloadModel(
            pool_id=pool_id, reload_id=reload_id, model_ref=model_ref, timeout_ms=timeout_ms
        )
        self.send(pool_registry_service_pb2.DispatchResponse(reload=reload))

    def acknowledge(self) -> None:
        """Opens the send window: at once where a quarter or more was used, else a little later."""
        bindings = self.bindings
        if bindings.unacked and not self._acks_planned:
            self._acks_planned = True
            asyncio.get_running_loop().call_later(ACK_DELAY_S, self._acknowledge_rest)
        if bindings.due:
            due, bindings.due = bindings.due, []
            self._send_acks(due)

    def _acknowledge_rest(self) -> None:
        self._acks_planned = False
        rest, self.bindings.unacked = sorted(self.bindings.unacked), set()
        self._send_acks(rest)

    def _send_acks(self, due: Iterable[int]) -> None:
        handles, texts = [], []
        for handle in due:
            binding = self.bindings.of(handle)
            if binding is not None and binding.read_offset > binding.acked_offset:
                binding.acked_offset = binding.read_offset
                handles.append(handle)
                texts.append(binding.read_offset)
        if handles:
            ack = dispatch_pb2.AckTokens(handles=handles, text_offsets=texts)
            self.send(pool_registry_service_pb2.DispatchResponse(ack=ack))

    # --- bindings and snapshots

    def key(self, handle: int) -> AttemptKey | None:
        """Attempt to which a handle is bound; None when its frames no longer count."""
        binding = self.bindings.of(handle)
        return binding.key if binding else None

    def hold_snapshots(self, snapshots: tuple[PoolSnapshot, ...], as_of_ms: int) -> None:
        """Keeps snapshots of registered pools until their frames were read: two of each pool.

        The one that waits longest stays: while frames are behind by more than a report interval, no
        snapshot would ever ripen if each were replaced by the next.
        """
        for snapshot in snapshots:
            if snapshot.pool_id in self.pool_ids:
                waiting = self._waiting.setdefault(snapshot.pool_id, [])
                waiting[1:] = [(snapshot, as_of_ms)]

    def ripe_snapshots(self) -> list[SnapshotsReported]:
        """Takes the latest snapshot per pool whose frames were read. Cheap when none waits."""
        if not self._waiting:
            return []
        events = []
        for pool_id, waiting in list(self._waiting.items()):
            ripe = [it for it in waiting if it[0].emitted_frame_seq <= self.frame_seq]
            if ripe:
                snapshot, as_of_ms = ripe[-1]
                events.append(SnapshotsReported(self.host_id, (snapshot,), as_of_ms))
                del waiting[: waiting.index(ripe[-1]) + 1]
            if not waiting:
                del self._waiting[pool_id]
        return events
