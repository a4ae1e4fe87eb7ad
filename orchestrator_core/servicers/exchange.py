"""Exchange: many jobs on one bidirectional stream. Design §4, LO-306.

One task reads requests, one writes messages, and each request that waits for the journal has a task
of its own, so that none holds up the next. What is followed lives in `ExchangeSession`.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.exchange_session import ExchangeLimits, ExchangeSession, invalid
from orchestrator_core.servicers.flag import Flag
from orchestrator_core.servicers.follow import Audience
from orchestrator_core.servicers.subscription import Terms
from orchestrator_core.telemetry.calls import Metadata
from orchestrator_core.wire.errors import to_status

JOB_ID_CHARS_MAX = 128
# A message costs far more than a batch of tokens in it: a busy stream gets one in this time, with
# all that came meanwhile. What comes after a pause as long, and every result, is sent at once.
GATHER_S = 0.005
# What is due as soon as this goes now: a timer would cost a turn of the event loop for it.
SOON_S = 0.001
BUSY_RETRY_MS = 100
STOPPING_RETRY_MS = 1_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from: metadata with its trace context, and the call's id for logs.

    `identity` is the name of the call's token, or `auth.caller.ANONYMOUS`.
    """

    metadata: Metadata
    correlation_id: str
    identity: str


# Gets a function that returns an answer, or raises what an awaited call would have raised.
Tell = Callable[[Callable[[], pb.EnqueueResponse]], None]
Forget = Callable[[], None]


def _by_a_task(_: job_pb2.JobSpec, __: Caller, ___: Tell) -> None:
    return None


@dataclass(frozen=True, slots=True)
class JobCalls:
    """The unary calls that a stream makes on behalf of its client. All raise `RefusalError`.

    `give` is `enqueue` without a task, which costs as much as the core: it tells later. The
    function that it returns takes back the wish to be told. It may return None, having done
    nothing: then the call must be awaited.
    """

    enqueue: Callable[[job_pb2.JobSpec, Caller], Awaitable[pb.EnqueueResponse]]
    cancel: Callable[[str, Caller], Awaitable[pb.CancelResponse]]
    give: Callable[[job_pb2.JobSpec, Caller, Tell], Forget | None] = _by_a_task


class Exchanges:
    """All open streams."""

    def __init__(
        self,
        runtime: Runtime,
        audience: Audience,
        calls: JobCalls,
        limits: ExchangeLimits | None = None,
    ) -> None:
        self._runtime = runtime
        self._audience = audience
        self._calls = calls
        self._limits = limits or ExchangeLimits()
        self._streams: set[_Stream] = set()

    async def serve(self, context: rpc.Context) -> None:
        """Serves one stream until its client is done or gone.

        Raises:
            RefusalError: INVALID_PARAMS for bytes that are no request; POOL_UNAVAILABLE when the
            server stops.
        """
        stream = _Stream(self._runtime, self._audience, self._calls, self._limits, context)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def stop(self) -> None:
        """Lets every stream send what it has and then end: the server stops."""
        for stream in self._streams:
            stream.stop()


class _Stream:
    def __init__(
        self,
        runtime: Runtime,
        audience: Audience,
        calls: JobCalls,
        limits: ExchangeLimits,
        context: rpc.Context,
    ) -> None:
        self._runtime = runtime
        self._calls = calls
        self._limits = limits
        self._context = context
        metadata = tuple(context.invocation_metadata() or ())
        self._caller = Caller(metadata, rpc.correlation_id(), rpc.identity())
        self._woken = Flag()
        self._drained = Flag()
        self._session = ExchangeSession(runtime, audience, self._wake, limits)
        self._loop = asyncio.get_running_loop()
        self._written_s = 0.0
        self._requests: set[asyncio.Task[None]] = set()
        # Tasks that have not begun: nothing may overtake them.
        self._unbegun = 0
        # Jobs that were given and not answered, by the number of their request; and answers.
        self._given: dict[int, Forget] = {}
        self._given_total = 0
        self._told: list[tuple[int, pb.ExchangeRequest, Callable[[], pb.EnqueueResponse]]] = []
        # Of the call: what answers log belongs to it.
        self._logged_as = contextvars.copy_context()
        self._opening = 0
        self._half_closed = False
        self._stopping = False

    async def run(self) -> None:
        """Reads and writes until both are done, or one fails."""
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            tasks = (reader, writer, *self._requests, *self._session.late.tasks)
            for task in tasks:
                task.cancel()
            # Before anything is awaited: this task may be cancelled again.
            self._session.close()
            self._forget_given()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def stop(self) -> None:
        """Ends the stream once what is ready was sent."""
        self._stopping = True
        self._woken.set()

    # --- out

    async def _write(self) -> None:
        """The only writer of the stream: concurrent writes would break it."""
        session = self._session
        while True:
            self._woken.clear()
            message = session.next_message()
            left_over = session.has_more
            if message:
                self._written_s = self._loop.time()
                await self._context.write(message)
                self._drained.set()
            if left_over or (self._stopping and session.has_more):
                continue
            if self._stopping:
                raise RefusalError(_stopping())
            if self._half_closed and self._all_done():
                return
            await self._woken.wait()

    def _wake(self, *, urgent: bool) -> None:
        """Lets the writer go on: at once when it was idle, else what comes is gathered a little."""
        wait_s = self._written_s + GATHER_S - self._loop.time()
        if urgent or wait_s <= SOON_S:
            self._woken.set()
        else:
            self._loop.call_later(wait_s, self._woken.set)

    def _all_done(self) -> bool:
        session = self._session
        under_way = self._requests or self._given
        return not (session.has_more or session.following or under_way)

    # --- in

    async def _read(self) -> None:
        """Takes requests until the client closes its side."""
        while (request := await rpc.read(self._context, pb.ExchangeRequest)) is not None:
            self._take(request)
            while self._session.unsent >= self._limits.requests_max:
                # A client that does not read its results is not listened to either.
                self._drained.clear()
                await self._drained.wait()
        self._half_closed = True
        self._session.lift_credit()
        self._woken.set()

    def _take(self, request: pb.ExchangeRequest) -> None:
        """Answers a request now, or begins to."""
        try:
            match request.WhichOneof("request"):
                case "ack":
                    taken = self._session.acknowledge(request.ack)
                    self._answer(request, pb.ExchangeResult(acknowledged_handles=taken))
                case "unsubscribe":
                    job_id = self._session.unsubscribe(request.unsubscribe.handle)
                    self._answer(request, pb.ExchangeResult(unsubscribed_job_id=job_id))
                case "enqueue":
                    follows = self._within_bounds(request, follows=request.enqueue.subscribe)
                    if self._unbegun or not self._give(request, follows):
                        self._begin(request, self._enqueue, follows)
                case "cancel":
                    self._begin(request, self._cancel, self._within_bounds(request, follows=False))
                case "subscribe":
                    follows = self._within_bounds(request, follows=True)
                    self._begin(request, self._subscribe, follows)
                case _:
                    unknown = invalid("request", "is missing, or not one that this server knows")
                    self._refuse(request, unknown.refusal)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a result
            self._refuse(request, rpc.refusal_of(error))

    def _within_bounds(self, request: pb.ExchangeRequest, *, follows: bool) -> bool:
        """Refuses one request too many; returns `follows`."""
        if not request.correlation_id:
            raise invalid("correlation_id", "must not be 0 for a request that has a result")
        if len(self._requests) + len(self._given) >= self._limits.requests_max:
            most = self._limits.requests_max
            raise _too_many(f"{most} requests are under way on this stream", "exchange-requests")
        if follows and self._session.following + self._opening >= self._limits.handles_max:
            most = self._limits.handles_max
            raise _too_many(f"{most} jobs are followed on this stream", "exchange-handles")
        return follows

    def _give(self, request: pb.ExchangeRequest, follows: bool) -> bool:
        """Gives a job without a task for it; False, and nothing done, when that cannot be now."""
        self._given_total += 1
        number = self._given_total

        def tell(answer: Callable[[], pb.EnqueueResponse]) -> None:
            if not self._told:
                self._loop.call_soon(self._tell_given, context=self._logged_as)
            self._told.append((number, request, answer))

        try:
            forget = self._calls.give(request.enqueue.spec, self._caller_of(request), tell)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a result
            self._refuse(request, rpc.refusal_of(error))
            return True
        if forget is None:
            return False
        self._given[number] = forget
        self._opening += follows
        return True

    def _tell_given(self) -> None:
        """Answers the jobs of which the journal has just been told."""
        told, self._told = self._told, []
        for number, request, answer in told:
            if self._given.pop(number, None) is None:
                continue
            try:
                self._answer(request, self._enqueued(request, answer()))
            except Exception as error:  # noqa: BLE001 - the edge: everything becomes a result
                self._refuse(request, rpc.refusal_of(error))
            self._opening -= request.enqueue.subscribe
        if self._half_closed:
            self._woken.set()

    def _forget_given(self) -> None:
        given, self._given = self._given, {}
        for forget in given.values():
            forget()

    def _begin(
        self,
        request: pb.ExchangeRequest,
        handler: Callable[[pb.ExchangeRequest], Awaitable[pb.ExchangeResult]],
        follows: bool,
    ) -> None:
        """Starts a request's task. Tasks begin in the order of requests."""
        self._opening += follows
        self._unbegun += 1
        self._requests.add(asyncio.create_task(self._run(request, handler, follows)))

    async def _run(
        self,
        request: pb.ExchangeRequest,
        handler: Callable[[pb.ExchangeRequest], Awaitable[pb.ExchangeResult]],
        follows: bool,
    ) -> None:
        self._unbegun -= 1
        try:
            self._answer(request, await handler(request))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a result
            self._refuse(request, rpc.refusal_of(error))
        finally:
            # A task that is cancelled before it began is cancelled with the whole stream.
            self._requests.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._opening -= follows
            if self._half_closed:
                self._woken.set()

    async def _enqueue(self, request: pb.ExchangeRequest) -> pb.ExchangeResult:
        receipt = await self._calls.enqueue(request.enqueue.spec, self._caller_of(request))
        return self._enqueued(request, receipt)

    def _enqueued(
        self, request: pb.ExchangeRequest, receipt: pb.EnqueueResponse
    ) -> pb.ExchangeResult:
        asked = request.enqueue
        result = pb.ExchangeResult(enqueued=receipt)
        if asked.subscribe:
            terms = Terms(
                credit_bytes=asked.credit_bytes if asked.HasField("credit_bytes") else None
            )
            try:
                result.handle = self._session.subscribe(
                    receipt.job_id, terms, place_told=not receipt.duplicate
                )
            except RefusalError as error:
                # The job is accepted, whatever becomes of following it.
                result.handle = self._session.break_off(error.refusal)
        return result

    async def _cancel(self, request: pb.ExchangeRequest) -> pb.ExchangeResult:
        job_id = _checked(request.cancel.job_id)
        answer = await self._calls.cancel(job_id, self._caller_of(request))
        return pb.ExchangeResult(cancelled=answer)

    async def _subscribe(self, request: pb.ExchangeRequest) -> pb.ExchangeResult:
        asked = request.subscribe
        job_id = _checked(asked.job_id)
        await self._runtime.settled(job_id)
        terms = Terms(
            asked.resume_from if asked.HasField("resume_from") else None,
            asked.credit_bytes if asked.HasField("credit_bytes") else None,
            asked.observer,
        )
        handle = self._session.subscribe(job_id, terms)
        return pb.ExchangeResult(handle=handle, subscribed_job_id=job_id)

    def _answer(self, request: pb.ExchangeRequest, result: pb.ExchangeResult) -> None:
        if request.correlation_id:
            result.correlation_id = request.correlation_id
            self._session.answer(result)

    def _refuse(self, request: pb.ExchangeRequest, refusal: Refusal) -> None:
        error = to_status(refusal)
        self._session.answer(pb.ExchangeResult(correlation_id=request.correlation_id, error=error))

    def _caller_of(self, request: pb.ExchangeRequest) -> Caller:
        """The stream's caller, with the request's own trace context where it has one."""
        if not request.traceparent:
            return self._caller
        others = (entry for entry in self._caller.metadata if entry[0] != "traceparent")
        metadata = (("traceparent", request.traceparent), *others)
        return replace(self._caller, metadata=metadata)


def _checked(job_id: str) -> str:
    if len(job_id) > JOB_ID_CHARS_MAX:
        raise invalid("job_id", f"may have {JOB_ID_CHARS_MAX} characters")
    return job_id


def _too_many(what: str, policy_label: str) -> RefusalError:
    text = f"{what}, which is the most; wait for results or outcomes, or open another stream"
    return RefusalError(Refusal(Reason.ADMISSION_REJECT, text, BUSY_RETRY_MS, policy_label))


def _stopping() -> Refusal:
    text = "the orchestrator stops; connect again and go on from where each job stands"
    return Refusal(Reason.POOL_UNAVAILABLE, text, STOPPING_RETRY_MS)
