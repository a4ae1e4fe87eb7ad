# SPDX-License-Identifier: Apache-2.0
"""What belongs to one Exchange stream and ends with it: requests under way, and jobs by handle."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch_client.errors import LlamaOrchError, detail_of, error_of
from llamaorch_client.exchange_job import ExchangeJob


@dataclass(slots=True)
class Asked:
    """A request without its result. `job` gets the handle that the result names.

    `answer` is None for a job that is followed again after a break.
    """

    request: pb.ExchangeRequest
    answer: "asyncio.Future[pb.ExchangeResult] | None"
    job: ExchangeJob | None = None

    @property
    def dropped(self) -> bool:
        """True when the caller has given up waiting."""
        return self.answer is not None and self.answer.cancelled()


@dataclass(frozen=True, slots=True)
class Followed:
    """What outlives a stream: the jobs that are followed, and who is to be told.

    `work` is set when there is something to write; `follow_again` is called for a job that the
    server could not follow at the moment, with the stream on which that was.
    """

    open_jobs: dict[ExchangeJob, None]
    work: asyncio.Event
    follow_again: Callable[[ExchangeJob, "Link"], None]
    correlation_id: str
    acknowledge: bool


class Link:
    """One stream. No I/O: the exchange writes what is in `waiting`, `left` and `take_ack`."""

    def __init__(self, session: Followed) -> None:
        self._session = session
        self._open = session.open_jobs
        self._work = session.work
        self.waiting: deque[Asked] = deque()
        self.asked: dict[int, Asked] = {}
        self.left: list[int] = []
        self._jobs: dict[int, ExchangeJob] = {}
        self._unread: dict[int, ExchangeJob] = {}
        self._acks: dict[int, tuple[int, int]] = {}
        self._final: list[int] = []

    @property
    def has_acks(self) -> bool:
        """True when there is something to acknowledge."""
        return bool(self._acks or self._final)

    def end(self) -> list[Asked]:
        """The stream is over: its handles mean nothing. Returns what was not answered, in order."""
        for job in (*self._jobs.values(), *self._unread.values()):
            job.handle = 0
        unanswered = (*self.asked.values(), *self.waiting)
        return [asked for asked in unanswered if asked.answer is not None and not asked.dropped]

    def take_ack(self) -> pb.ExchangeAck | None:
        """Everything that is to be acknowledged; None for nothing."""
        if not (self._acks or self._final):
            return None
        ack = pb.ExchangeAck(handles=self._acks, final_handles=self._final)
        ack.text_offsets.extend(offset for offset, _ in self._acks.values())
        ack.credit_bytes.extend(credit for _, credit in self._acks.values())
        self._acks, self._final = {}, []
        return ack

    def touch(self, job: ExchangeJob) -> None:
        """A job was read on, or is read no longer.

        What it has for a handle may be that of a stream before, and another job's here.
        """
        handle = job.handle
        followed, unread = self._jobs.get(handle) is job, self._unread.get(handle) is job
        if unread and job.left:
            del self._unread[handle]
        if job.finished:
            if unread and self._session.acknowledge:
                self._final.append(handle)
        elif job.left:
            self._open.pop(job, None)
            if followed:
                del self._jobs[handle]
                self.left.append(handle)
        elif followed and (due := job.due()) is not None:
            offset = due[0] if self._session.acknowledge else 0
            self._acks[handle] = offset, due[1] + self._acks.get(handle, (0, 0))[1]
        else:
            return
        self._work.set()

    def take(self, message: pb.ExchangeResponse) -> None:
        """Applies a message, in the order of the contract."""
        for result in message.results:
            self._result(result)
        for begun in message.begun:
            self._event(begun.handle, begun.event)
        for handle, chunk in zip(message.tokens.handles, message.tokens.chunks, strict=True):
            self._tokens(handle, chunk)
        for event in message.events:
            self._event(event.handle, event.event)
        for broken in message.broken:
            self._broken(broken)

    def _result(self, result: pb.ExchangeResult) -> None:
        asked = self.asked.pop(result.correlation_id, None)
        self._work.set()
        if asked is None:
            return
        if result.HasField("error"):
            self._refused(asked, error_of(detail_of(result.error, self._session.correlation_id)))
            return
        if asked.job is not None and result.handle:
            self._follow(asked.job, result, dropped=asked.dropped)
        if asked.answer is not None and not asked.answer.done():
            asked.answer.set_result(result)

    def _follow(self, job: ExchangeJob, result: pb.ExchangeResult, *, dropped: bool) -> None:
        if dropped or job.left:
            self.left.append(result.handle)
            if job.left or not job.handle:
                # Else it was asked for again, and that was answered first.
                self._open.pop(job, None)
            return
        job.handle = result.handle
        if result.HasField("enqueued"):
            job.named(result.enqueued.job_id)
        self._jobs[result.handle] = job
        self._open[job] = None

    def _refused(self, asked: Asked, error: LlamaOrchError) -> None:
        if asked.answer is not None:
            if not asked.answer.done():
                asked.answer.set_exception(error)
        elif asked.job is not None:
            # A job that cannot be followed again, now or at all.
            job, wait_ms = asked.job, error.retry_after_ms
            if error.retriable and wait_ms is not None and job.may_try_again():
                later = asyncio.get_running_loop().call_later
                later(wait_ms / 1000, self._session.follow_again, job, self)
            else:
                self._open.pop(job, None)
                job.fail(error)

    def _event(self, handle: int, event: events_pb2.JobEvent) -> None:
        job = self._jobs.get(handle)
        if job is not None:
            job.accept(event)
            if job.over:
                self._over(handle, job)

    def _tokens(self, handle: int, chunk: bytes) -> None:
        job = self._jobs.get(handle)
        if job is not None:
            job.accept_tokens(events_pb2.TokenBatch.FromString(chunk))
            if job.over:
                self._over(handle, job)

    def _over(self, handle: int, job: ExchangeJob) -> None:
        """A job has its outcome, or broke the contract and is not to be trusted."""
        del self._jobs[handle]
        self._open.pop(job, None)
        if job.ended:
            self._unread[handle] = job
        else:
            self.left.append(handle)
            self._work.set()

    def _broken(self, broken: pb.ExchangeBroken) -> None:
        job = self._jobs.pop(broken.handle, None)
        if job is not None:
            self._open.pop(job, None)
            job.fail(error_of(detail_of(broken.error, self._session.correlation_id)))
