# SPDX-License-Identifier: Apache-2.0
"""One job of an exchange: its verified events, and how much credit and acknowledgement is due."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch_client.errors import ErrorDetail, IntegrityError, JobFailedError, LlamaOrchError
from llamaorch_client.events import (
    End,
    Event,
    Failed,
    Metrics,
    Queued,
    Result,
    ResumePoint,
    Tokens,
)
from llamaorch_client.reader import OutputReader
from llamaorch_client.stream import read_result

if TYPE_CHECKING:
    from llamaorch_client.model import Receipt

# With the server's own delays between them.
REFUSALS_MAX = 20


class ExchangeJob(AsyncIterator[Event]):
    """The events of one job. Iterate it, or take `await job.result()`.

    At most `credit_bytes` of output (and one batch) wait here unread; a job that is not read stops,
    and no other. Leaving the iteration early does not detach: `aclose`, or `async with`, does; the
    job runs on. `changed` is called when credit or an acknowledgement may be due.
    """

    def __init__(
        self,
        job_id: str,
        credit_bytes: int,
        changed: "Callable[[ExchangeJob], None]",
        *,
        resume_from: ResumePoint | None = None,
        observer: bool = False,
        failures_as_events: bool = False,
    ) -> None:
        self.observer = observer
        self.receipt: Receipt | None = None
        self.handle = 0
        self._job_id = job_id
        self._credit_bytes = credit_bytes
        self._changed = changed
        self._failures_as_events = failures_as_events
        self._texts = [resume_from.text if resume_from is not None else ""]
        self._reader = OutputReader(resume_from)
        self._buffer: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._error: LlamaOrchError | None = None
        self._read_offset = self._reader.text_offset
        self._granted_offset = self._acked_offset = self._read_offset
        self._closed = False
        self._outcome_read = False
        self._refusals = 0
        self.resumes = 0

    # --- for the caller

    @property
    def job_id(self) -> str:
        """Id of the job."""
        return self._job_id

    @property
    def attempt(self) -> int:
        """Attempt of the last output; with the text so far it makes a `ResumePoint`."""
        return self._reader.attempt

    @property
    def text_offset(self) -> int:
        """UTF-8 bytes of verified output so far."""
        return self._reader.text_offset

    async def result(self) -> Result:
        """Reads to the end and returns the whole text.

        Raises:
            JobFailedError: the job failed, expired or was dropped.
            LlamaOrchError: the job could not be followed to its end.
            RuntimeError: the job was already read, also in part, or closed.
        """
        return await read_result(self, self._texts)

    async def aclose(self) -> None:
        """Stops following; the job runs on. Closing twice is fine."""
        self._closed = True
        self._buffer.clear()
        self._filled.set()
        self._changed(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._buffer:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                self._closed = True
                raise self._error
            self._filled.clear()
            await self._filled.wait()
        event = self._buffer.popleft()
        if isinstance(event, Tokens):
            self._read_offset = event.text_offset + len(event.text.encode())
            self._changed(self)
        elif isinstance(event, End | Failed):
            self._closed = self._outcome_read = True
            self._changed(self)
        if isinstance(event, Failed) and not self._failures_as_events:
            raise JobFailedError(event.error, self._job_id)
        return event

    # --- for the exchange

    @property
    def left(self) -> bool:
        """True when nobody reads it any more."""
        return self._closed

    @property
    def over(self) -> bool:
        """True when nothing more is to be received: outcome, error, or nobody reads."""
        return self._closed or self._reader.ended or self._error is not None

    @property
    def ended(self) -> bool:
        """True once the outcome was received."""
        return self._reader.ended

    def may_try_again(self) -> bool:
        """Counts a try to follow it that was refused; False when there were too many in a row."""
        self._refusals += 1
        return self._refusals < REFUSALS_MAX

    @property
    def finished(self) -> bool:
        """True when all of it, with the outcome, was read; not when the reader left before."""
        return self._outcome_read

    def named(self, job_id: str) -> None:
        """The server accepted the job under this id."""
        self._job_id = job_id

    def resume_point(self) -> events_pb2.ResumePoint | None:
        """Where to go on, or None for the beginning."""
        return self._reader.resume_point()

    def initial_credit(self) -> int:
        """Credit with which to follow from `resume_point`, counting what waits unread."""
        unread = self._reader.text_offset - self._read_offset
        credit = max(0, self._credit_bytes - unread)
        self._granted_offset = self._reader.text_offset + credit
        return credit

    def due(self) -> tuple[int, int] | None:
        """Offset to acknowledge and credit to give, once half the credit was used; else None."""
        credit = self._read_offset + self._credit_bytes - self._granted_offset
        if 2 * credit < self._credit_bytes:
            return None
        self._granted_offset += credit
        return self._read_offset, credit

    def accept(self, raw: events_pb2.JobEvent) -> None:
        """Takes an event other than output; what breaks the contract ends the job here."""
        try:
            event = self._reader.accept(raw)
        except IntegrityError as error:
            self.fail(error)
            return
        if event is not None:
            self._put(event)

    def accept_tokens(self, batch: events_pb2.TokenBatch) -> None:
        """Takes output, as `accept`."""
        try:
            event = self._reader.accept_tokens(batch)
        except IntegrityError as error:
            self.fail(error)
            return
        if event is not None:
            self._put(event)

    def fail(self, error: LlamaOrchError) -> None:
        """The job cannot be followed any further; raised after what was received."""
        if self._error is None and not self._reader.ended:
            self._error = error
        self._filled.set()

    def _put(self, event: Event) -> None:
        self._refusals = 0
        if self._closed:
            return
        last = self._buffer[-1] if self._buffer else None
        if isinstance(event, Queued | Metrics) and type(last) is type(event):
            # Only the latest counts, so a job that is not read gathers no more than one.
            self._buffer[-1] = event
        else:
            self._buffer.append(event)
        self._filled.set()


def closed_detail() -> ErrorDetail:
    """What is told to who still waits on an exchange that was closed."""
    return ErrorDetail(
        message="the exchange was closed", reason="EXCHANGE_CLOSED", code="UNAVAILABLE"
    )
