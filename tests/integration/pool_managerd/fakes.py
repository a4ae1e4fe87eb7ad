"""A scripted orchestrator and a scripted engine: both sides of the pool manager's real ports."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from grpc import StatusCode, aio

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2_grpc as registry_grpc
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    EngineInfo,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    Usage,
)

WAIT_S = 10.0


@dataclass
class Stored:
    """Output of one handle as the orchestrator has read it."""

    batches: list[events_pb2.TokenBatch] = field(default_factory=list)
    started: list[dispatch_pb2.AttemptStarted] = field(default_factory=list)
    refused: list[dispatch_pb2.AttemptRefused] = field(default_factory=list)
    ended: list[dispatch_pb2.AttemptEnded] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in order of arrival."""
        return "".join(piece for batch in self.batches for piece in batch.pieces)


class Session:
    """One Dispatch stream as seen by the orchestrator; `register` is put together again."""

    def __init__(self, register: dispatch_pb2.Register, pages: list[int], peer: str) -> None:
        self.register = register
        self.peer = peer
        self.held_per_page = pages
        self.commands: asyncio.Queue[registry_pb2.DispatchResponse | None] = asyncio.Queue()
        self.frames: list[dispatch_pb2.HostFrame] = []
        self.closed = asyncio.Event()
        self.half_closed = asyncio.Event()


class FakeOrchestrator(registry_grpc.PoolRegistryServiceServicer):
    """Serves PoolRegistryService and records everything, in the order in which it was read.

    `verdict` answers every held attempt; `window_bytes`, `heartbeat_ms` and
    `reattach_grace_ms` go into Registered. A `silent` one sends no sign of life; one with a
    `refusal` takes no session, and counts those that it `refused`. Inputs that are fetched come
    from `inputs`.
    """

    def __init__(self) -> None:
        self.journal_id = "journal-1"
        self.epoch = 1
        self.window_bytes = 1 << 20
        self.heartbeat_ms = 5_000
        self.reattach_grace_ms = 0
        self.silent = False
        self.refusal: tuple[StatusCode, str] | None = None
        self.refused = 0
        self.verdict: Callable[[dispatch_pb2.HeldAttempt], dispatch_pb2.AttemptVerdict] = _abort
        self.sessions: list[Session] = []
        self.snapshots: list[snapshot_pb2.PoolSnapshot] = []
        self.acks: list[int] = []
        self.rejections: list[registry_pb2.SnapshotRejection] = []
        self.handles: dict[int, Stored] = {}
        self.sent: list[registry_pb2.DispatchResponse] = []
        self.fetches: list[registry_pb2.FetchInputRequest] = []
        self.fetch_traces: list[str] = []
        self.inputs: asyncio.Queue[registry_pb2.FetchInputResponse | StatusCode | None]
        self.inputs = asyncio.Queue()
        self._dispatch_seq = 0
        self._changed = asyncio.Condition()
        self._server: aio.Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listens on the port it had before, or on a free one."""
        self._server = aio.server(options=(("grpc.so_reuseport", 0),))
        registry_grpc.add_PoolRegistryServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        """Ends every stream at once, as a crash would."""
        for session in self.sessions:
            session.commands.put_nowait(None)
        if self._server is not None:
            await self._server.stop(0)

    def stored(self, handle: int) -> Stored:
        """What was read for `handle`."""
        return self.handles.setdefault(handle, Stored())

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until `condition` holds; looks after every message."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    def send(self, **command: object) -> int:
        """Sends one command on the newest session and returns its number."""
        self._dispatch_seq += 1
        message = registry_pb2.DispatchResponse(dispatch_seq=self._dispatch_seq, **command)
        self.sent.append(message)
        self.sessions[-1].commands.put_nowait(message)
        return self._dispatch_seq

    def drop(self) -> None:
        """Ends the newest session's stream."""
        self.sessions[-1].commands.put_nowait(None)

    def ready(self, pool_id: str = "p0") -> snapshot_pb2.PoolSnapshot | None:
        """The newest snapshot of `pool_id` when it says READY."""
        newest = self.newest(pool_id)
        ready = newest is not None and newest.state == snapshot_pb2.POOL_STATE_READY
        return newest if ready else None

    def newest(self, pool_id: str = "p0") -> snapshot_pb2.PoolSnapshot | None:
        """The newest snapshot of `pool_id`."""
        return next((s for s in reversed(self.snapshots) if s.pool_id == pool_id), None)

    async def Dispatch(  # noqa: N802 - the wire's name
        self,
        request_iterator: AsyncIterator[registry_pb2.DispatchRequest],
        context: aio.ServicerContext,
    ) -> AsyncIterator[registry_pb2.DispatchResponse]:
        """One session, or a refusal before anything is read."""
        if self.refusal is not None:
            self.refused += 1
            await self._notify()
            await context.abort(*self.refusal)
        register = (await anext(aiter(request_iterator))).register
        pages = [len(register.held)]
        while register.more:
            further = (await anext(aiter(request_iterator))).register
            register.held.extend(further.held)
            register.more = further.more
            pages.append(len(further.held))
        session = Session(register, pages, context.peer())
        self.sessions.append(session)
        self.snapshots.extend(register.pools)
        await self._notify()
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            yield self._registered(register)
            while (command := await self._next_command(session)) is not None:
                yield command
        finally:
            reader.cancel()
            session.closed.set()

    async def _next_command(self, session: Session) -> registry_pb2.DispatchResponse | None:
        if self.silent:
            return await session.commands.get()
        try:
            async with asyncio.timeout(self.heartbeat_ms / 3000):
                return await session.commands.get()
        except TimeoutError:
            return registry_pb2.DispatchResponse(dispatch_seq=self._dispatch_seq)

    def _registered(self, register: dispatch_pb2.Register) -> registry_pb2.DispatchResponse:
        self._dispatch_seq += 1
        return registry_pb2.DispatchResponse(
            dispatch_seq=self._dispatch_seq,
            registered=dispatch_pb2.Registered(
                epoch=self.epoch,
                journal_id=self.journal_id,
                verdicts=[self.verdict(held) for held in register.held],
                report_interval_ms=500,
                send_window_bytes=self.window_bytes,
                heartbeat_timeout_ms=self.heartbeat_ms,
                reattach_grace_ms=self.reattach_grace_ms,
            ),
        )

    async def _read(
        self, session: Session, requests: AsyncIterator[registry_pb2.DispatchRequest]
    ) -> None:
        async for request in requests:
            frame = request.frame
            session.frames.append(frame)
            self._keep(frame)
            await self._notify()
        session.half_closed.set()
        session.commands.put_nowait(None)

    def _keep(self, frame: dispatch_pb2.HostFrame) -> None:
        for refused in frame.refused:
            self.stored(refused.handle).refused.append(refused)
        for started in frame.started:
            self.stored(started.handle).started.append(started)
        for handle, chunk in zip(frame.tokens.handles, frame.tokens.chunks, strict=True):
            assert not self.stored(handle).ended, "nothing follows the end"
            self.stored(handle).batches.append(events_pb2.TokenBatch.FromString(chunk))
        for ended in frame.ended:
            self.stored(ended.handle).ended.append(ended)

    async def ReportSnapshots(  # noqa: N802 - the wire's name
        self,
        request_iterator: AsyncIterator[registry_pb2.ReportSnapshotsRequest],
        context: aio.ServicerContext,
    ) -> AsyncIterator[registry_pb2.ReportSnapshotsResponse]:
        """Acknowledges every report."""
        async for request in request_iterator:
            self.snapshots.extend(request.pools)
            self.acks.append(request.echoed_ack_id)
            await self._notify()
            yield registry_pb2.ReportSnapshotsResponse(
                ack_id=len(self.acks), rejections=self.rejections
            )

    async def FetchInput(  # noqa: N802 - the wire's name
        self, request: registry_pb2.FetchInputRequest, context: aio.ServicerContext
    ) -> AsyncIterator[registry_pb2.FetchInputResponse]:
        """Answers what the test puts into `inputs`: pieces, then None, or a status."""
        self.fetches.append(request)
        metadata = dict(context.invocation_metadata() or ())
        self.fetch_traces.append(str(metadata.get("traceparent", "")))
        await self._notify()
        while (answer := await self.inputs.get()) is not None:
            if isinstance(answer, StatusCode):
                await context.abort(answer, "scripted")
            yield answer

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _abort(held: dispatch_pb2.HeldAttempt) -> dispatch_pb2.AttemptVerdict:
    return dispatch_pb2.AttemptVerdict(
        job_id=held.job_id, attempt=held.attempt, verdict=dispatch_pb2.HELD_VERDICT_ABORT
    )


class ScriptedEngine:
    """An engine that yields what the test puts into it, one event at a time.

    `feed(job)` is the queue of one generation; a generation waits on it. `die` ends the process.
    """

    def __init__(self, slots: int = 1, *, deterministic: bool = False) -> None:
        self.info = EngineInfo(
            "scripted", "1", "m", "sha256:0", "s1", slots, 512, deterministic=deterministic
        )
        self.requests: list[GenerationRequest] = []
        self.stopped = asyncio.Event()
        self.holds_slots = False
        self.well = True
        self.tells: dict[str, object] = {}
        self.preload_problem = ""
        self.preload_error: PreloadError | None = None
        # What it writes while it starts for ever.
        self.wrote = ""
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        # What a generation that is closed waits for.
        self.lets_go = asyncio.Event()
        self.lets_go.set()
        self._exit = asyncio.Event()
        self._feeds: dict[str, asyncio.Queue[GenerationEvent]] = {}
        self.open_generations = 0
        self.most_open = 0

    def feed(self, job_id: str, attempt: int = 1) -> asyncio.Queue[GenerationEvent]:
        """Events of one generation."""
        return self.feed_of(f"{job_id}#{attempt}")

    def feed_of(self, request_id: str) -> asyncio.Queue[GenerationEvent]:
        """Events of a generation that is no attempt."""
        return self._feeds.setdefault(request_id, asyncio.Queue())

    def without_version(self) -> None:
        """Tells everything about itself but its version."""
        self.info = replace(self.info, engine_version="")

    def say(self, job_id: str, *texts: str, attempt: int = 1, end: bool = False) -> None:
        """Yields pieces, and then the end if asked to."""
        for number, text in enumerate(texts):
            self.feed(job_id, attempt).put_nowait(Piece(text, (number,)))
        if end:
            usage = Usage(tokens_in=3, tokens_out=len(texts), decode_time_ms=7)
            self.feed(job_id, attempt).put_nowait(Finished(Finish.EOS, usage))

    def die(self) -> None:
        """Ends the process in the middle of everything."""
        self._exit.set()
        for feed in self._feeds.values():
            feed.put_nowait(Failed(Failure.ENGINE_DIED, "the connection broke"))

    def last_words(self) -> str:
        """What it wrote last."""
        return self.wrote

    async def start(self) -> EngineInfo:
        """Ready at once, or never."""
        if self.wrote:
            await asyncio.Event().wait()
        if self.preload_error is not None:
            raise self.preload_error
        if self.preload_problem:
            raise PreloadError([self.preload_problem])
        return replace(self.info, **self.tells)  # type: ignore[arg-type] # as a test says

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yields what was fed."""
        self.requests.append(request)
        self.open_generations += 1
        self.most_open = max(self.most_open, self.open_generations)
        feed = self._feeds.setdefault(request.request_id, asyncio.Queue())
        try:
            while True:
                event = await feed.get()
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            self.open_generations -= 1
            await self.lets_go.wait()

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Idle at once, unless the engine holds on to its slots."""
        asked = any(request.request_id == request_id for request in self.requests)
        if self.holds_slots and asked:
            await asyncio.sleep(timeout_ms / 1000)
            raise CancelUnconfirmedError(request_id)

    async def healthy(self) -> bool:
        """Whether it is well."""
        return self.well

    async def wait_exit(self) -> str:
        """Waits for `die`."""
        await self._exit.wait()
        return "the engine process ended with signal 9"

    async def stop(self) -> None:
        """Ends it, once it may."""
        await self.may_stop.wait()
        self._exit.set()
        self.stopped.set()


def digest(text: str) -> int:
    """The digest chain's definition, written a second time."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
