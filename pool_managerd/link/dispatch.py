"""The Dispatch stream: dials the orchestrator, obeys its commands, sends frames.

LO-301, LO-305, LO-306.

A session is one stream from Register to its end. Attempts run on when it ends, and their output is
kept until the orchestrator releases it. One writer task owns every write: concurrent writes kill an
aio stream.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version

from grpc import aio

from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1.pool_registry_service_pb2_grpc import PoolRegistryServiceStub
from pool_managerd import failpoints
from pool_managerd.attempts.executor import Executor
from pool_managerd.auth.credentials import Metadata, why_ended
from pool_managerd.config.schema import Config
from pool_managerd.core.attempts import AttemptKey
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.outbox import Frame, Outbox
from pool_managerd.errors import SessionLostError
from pool_managerd.link import wire
from pool_managerd.link.bell import Bell
from pool_managerd.link.commands import Commands
from pool_managerd.link.inputs import Inputs
from pool_managerd.link.liveness import Liveness
from pool_managerd.link.reporter import Reporter
from pool_managerd.link.streams import STREAM_ERRORS, Ending, together, until_lost, written
from pool_managerd.loop import holder
from pool_managerd.pools.pool import Pool
from pool_managerd.snapshots import HostState, SnapshotBuilder
from pool_managerd.telemetry import Telemetry, log

DispatchCall = aio.StreamStreamCall[registry_pb2.DispatchRequest, registry_pb2.DispatchResponse]

_EMPTY = Frame((), (), (), ())
# The wait here and that of the channel, with its jitter of a fifth, may follow one another; then
# the connection itself takes its time.
_WAITS_PER_GRACE = 4


REASONS_TOLD_MAX = 8
"""Reasons of which each is logged once while the orchestrator is not reached."""


async def _nothing() -> Metadata:
    return ()


@dataclass(frozen=True, slots=True)
class LinkDeps:
    """What the link works with. `jitter()` gives a number in [0, 1).

    `connect` makes a channel, which the session that asked for it closes; `inputs` uses it too.
    `metadata` proves who this host is; both may raise `SessionLostError`.
    """

    config: Config
    connect: Callable[[], Awaitable[aio.Channel]]
    host: HostState
    pools: dict[str, Pool]
    executor: Executor
    snapshots: SnapshotBuilder
    reporter: Reporter
    telemetry: Telemetry
    jitter: Callable[[], float]
    metadata: Callable[[], Awaitable[Metadata]] = _nothing
    inputs: Inputs | None = None


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the orchestrator asked for in Registered, with our own defaults for what it left out."""

    report_interval_ms: int
    send_window_bytes: int
    heartbeat_timeout_ms: int


class Link:
    """Keeps a session with the orchestrator for as long as `run` runs."""

    def __init__(self, deps: LinkDeps) -> None:
        self._deps = deps
        self._config = deps.config
        self._host = deps.host
        self._bell = Bell()
        self._sent_at_s = 0.0
        self._hold: Callable[[float], None] = lambda _when_s: None
        self._beat_due = False
        self._outbox: Outbox | None = None
        self._leaving = False
        self._left = asyncio.Event()
        backoff = deps.config.link.backoff
        self._backoff = Backoff(backoff.initial_ms, backoff.cap_ms)
        self._commands = Commands(deps.executor, deps.pools, deps.telemetry)

    @property
    def up(self) -> bool:
        """True while the orchestrator has taken the registration of the present stream."""
        return self._outbox is not None

    @property
    def unacked_bytes(self) -> int:
        """Output that was sent on the present stream and not acknowledged yet."""
        return self._outbox.unacked_bytes if self._outbox is not None else 0

    async def run(self) -> None:
        """Dials, and dials again with backoff when a session ends; until `leave` or cancelled."""
        failures = 0
        told: set[str] = set()
        while True:
            reached = False
            try:
                # A connection of its own: one that fell silent would be silent for the next too,
                # until the transport finds out by itself.
                async with await self._deps.connect() as channel, self._session(channel) as session:
                    reached = True
                    await self._serve(channel, *session)
            except STREAM_ERRORS as error:
                # Each reason once, not with every try: an orchestrator may be away for long.
                told = set() if reached else told
                reason = why_ended(error)
                if not self._leaving and reason not in told and len(told) < REASONS_TOLD_MAX:
                    told.add(reason)
                    _log_lost(self._config.orchestrator, reason)
            if self._leaving:
                break
            failures = 1 if reached else failures + 1
            await asyncio.sleep(self._backoff.delay_ms(failures, self._deps.jitter()) / 1000)
        self._left.set()

    async def leave(self, timeout_ms: int) -> None:
        """Ends the session once the end of every attempt was sent, at most after `timeout_ms`.

        The stream is half-closed, so that the orchestrator reads what was written last and then
        closes it. Without a session there is nobody to tell.
        """
        self._leaving = True
        self._bell.ring()
        if self._outbox is None:
            return
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._left.wait()
        except TimeoutError:
            log.warning(
                "leave_timeout",
                timeout_ms=timeout_ms,
                human="Not all that had ended could be told to the orchestrator before the stop.",
            )

    @contextlib.asynccontextmanager
    async def _session(
        self, channel: aio.Channel
    ) -> AsyncIterator[tuple[DispatchCall, _Terms, Metadata]]:
        metadata = await self._deps.metadata()
        call: DispatchCall = PoolRegistryServiceStub(channel).Dispatch(metadata=metadata)
        ending = Ending(call)
        try:
            first = await until_lost(self._hello(call))
            failpoints.reach("register.after")
            terms = self._registered(first)
            failpoints.reach("verdicts.obeyed")
            self._use(channel)
            yield call, terms, metadata
        except STREAM_ERRORS as error:
            why = await ending.error(error)
            if why is error:
                raise
            raise why from error
        finally:
            self._use(None)
            self._outbox = None
            self._deps.executor.on_output = lambda _log: None
            call.cancel()

    def _use(self, channel: aio.Channel | None) -> None:
        if self._deps.inputs is not None:
            self._deps.inputs.use(channel)

    async def _hello(self, call: DispatchCall) -> registry_pb2.DispatchResponse | None:
        async with asyncio.timeout(self._config.link.connect_timeout_ms / 1000):
            # A call that was refused meanwhile says so when it is read.
            failpoints.reach("register.before")
            with contextlib.suppress(asyncio.InvalidStateError, aio.AioRpcError):
                for register in self._registers():
                    await call.write(registry_pb2.DispatchRequest(register=register))
            return await anext(aiter(call), None)

    def _registers(self) -> list[dispatch_pb2.Register]:
        self._host.dial_seq += 1
        first = dispatch_pb2.Register(
            dial_seq=self._host.dial_seq,
            host_id=self._host.host_id,
            boot_id=self._host.boot_id,
            version=_version(),
            protocol_version=wire.PROTOCOL_VERSION,
            pools=self._deps.snapshots.all(),
            epoch=self._host.epoch,
            journal_id=self._host.journal_id,
            held_attempts_max=self._config.limits.held_attempts_max,
        )
        return wire.register_pages(first, self._deps.executor.store)

    def _registered(self, first: registry_pb2.DispatchResponse | None) -> _Terms:
        if first is None:
            raise SessionLostError("the orchestrator closed the stream before Registered")
        if first.WhichOneof("command") != "registered":
            raise SessionLostError("the first answer was not Registered")
        message = first.registered
        same_journal = message.journal_id == self._host.journal_id
        if same_journal and message.epoch < self._host.epoch:
            raise SessionLostError(
                f"epoch {message.epoch} is below {self._host.epoch}: an orchestrator of the past"
            )
        # Another journal knows nothing of what is held here: only its verdicts count.
        self._host.journal_id, self._host.epoch = message.journal_id, message.epoch
        self._host.applied_dispatch_seq = first.dispatch_seq
        limits = self._config.limits
        terms = _Terms(
            min(self._config.report_interval_ms, message.report_interval_ms or 86_400_000),
            message.send_window_bytes or limits.send_window_bytes,
            message.heartbeat_timeout_ms or self._config.link.heartbeat_timeout_ms,
        )
        self._check_grace(message.reattach_grace_ms)
        self._outbox = Outbox(terms.send_window_bytes, limits.frame_bytes, self._bell.ring)
        self._deps.executor.on_output = self._outbox.touch
        self._obey_verdicts(self._outbox, message)
        self._host.registrations += 1
        log.info(
            "registered",
            orchestrator=self._config.orchestrator,
            epoch=message.epoch,
            adopted=sum(v.verdict == dispatch_pb2.HELD_VERDICT_ADOPT for v in message.verdicts),
            human=f"Connected to the orchestrator at {self._config.orchestrator}.",
        )
        return terms

    def _check_grace(self, grace_ms: int) -> None:
        """Warns of waits so long that what runs here may be given up before this host is back."""
        cap_ms = self._config.link.backoff.cap_ms
        if grace_ms and cap_ms * _WAITS_PER_GRACE > grace_ms:
            log.warning(
                "backoff_too_long",
                cap_ms=cap_ms,
                reattach_grace_ms=grace_ms,
                human=f"After an outage this host may come back later than the {grace_ms} ms that "
                f"the orchestrator waits for it: set link.backoff.cap_ms to at most "
                f"{max(1, grace_ms // _WAITS_PER_GRACE)}, or raise its pools.reattach_grace_ms.",
            )

    def _obey_verdicts(self, outbox: Outbox, message: dispatch_pb2.Registered) -> None:
        store = self._deps.executor.store
        adopted: set[AttemptKey] = set()
        for verdict in message.verdicts:
            key = AttemptKey(verdict.job_id, verdict.attempt)
            entry = store.get(key)
            if entry is not None and verdict.verdict == dispatch_pb2.HELD_VERDICT_ADOPT:
                outbox.bind(verdict.handle, entry, verdict.first_index)
                adopted.add(key)
        for entry in store:
            # ABORT, RELEASE, a verdict that we do not know, or none at all: it does not count.
            if entry.key not in adopted:
                self._deps.executor.forget(entry.key)

    async def _serve(
        self, channel: aio.Channel, call: DispatchCall, terms: _Terms, metadata: Metadata
    ) -> None:
        liveness = Liveness(terms.heartbeat_timeout_ms)
        self._sent_at_s = asyncio.get_running_loop().time()
        self._hold = holder()
        await together(
            self._read(call, liveness),
            self._write(call, liveness),
            self._beat(terms.heartbeat_timeout_ms / 3000),
            self._deps.reporter.run(channel, terms.report_interval_ms, metadata),
            liveness.watch(),
        )

    async def _read(self, call: DispatchCall, liveness: Liveness) -> None:
        obeyed_seq = self._host.applied_dispatch_seq
        async for message in call:
            liveness.heard()
            command = message.WhichOneof("command")
            # Each command has the next number of its stream. One that arrives again, however late,
            # was obeyed: what it started may be over and forgotten, and must not begin anew.
            if command is not None and message.dispatch_seq > obeyed_seq:
                self._commands.obey(command, message, self._bound())
                obeyed_seq = message.dispatch_seq
            self._host.applied_dispatch_seq = max(
                self._host.applied_dispatch_seq, message.dispatch_seq
            )
        raise SessionLostError("the orchestrator closed the stream")

    async def _write(self, call: DispatchCall, liveness: Liveness) -> None:
        outbox = self._outbox
        assert outbox is not None, "a session has an outbox"
        coalesce_s = self._config.coalesce_ms / 1000
        # An empty frame at once: the reader then knows the number of the last frame that it may
        # have missed.
        await self._send(call, _EMPTY, liveness)
        while not (self._leaving and outbox.drained):
            # What comes after a pause goes at once; what comes in a burst waits for company.
            await self._bell.wait(self._sent_at_s + coalesce_s)
            if self._beat_due:
                await self._send(call, _EMPTY, liveness)
            while (frame := outbox.take()) is not None:
                await self._send(call, frame, liveness)
        await call.done_writing()

    async def _beat(self, interval_s: float) -> None:
        """Asks for an empty frame, a sign of life, whenever none was sent for that long."""
        loop = asyncio.get_running_loop()
        while True:
            seen_s = self._sent_at_s
            await asyncio.sleep(max(0.0, seen_s + interval_s - loop.time()))
            if self._sent_at_s == seen_s:
                self._beat_due = True
                self._bell.ring()
                await asyncio.sleep(interval_s)

    async def _send(self, call: DispatchCall, frame: Frame, liveness: Liveness) -> None:
        # The number is taken in the step that hands the frame over: a snapshot taken later names
        # it.
        self._host.emitted_frame_seq += 1
        self._beat_due = False
        message = wire.frame_message(
            frame, self._host.emitted_frame_seq, self._host.applied_dispatch_seq
        )
        if frame.chunks:
            failpoints.reach("frame.before")
        if frame.ended:
            failpoints.reach("frame.end.before")
        self._sent_at_s = asyncio.get_running_loop().time()
        if not self._bound().pending:
            self._hold(self._sent_at_s + self._config.coalesce_ms / 1000)
        with liveness:
            await written(call.write(message))
        if frame.chunks:
            failpoints.reach("frame.after")
        if frame.ended:
            failpoints.reach("frame.end.after")

    def _bound(self) -> Outbox:
        assert self._outbox is not None, "commands arrive within a session"
        return self._outbox


@functools.cache
def _version() -> str:
    """Read once: a registration must not parse the metadata of the package each time."""
    return version("llamaorch")


def _log_lost(address: str, reason: str) -> None:
    human = f"No session with the orchestrator at {address}, which is tried again: {reason}"
    log.warning("session_lost", reason=reason, human=human)
