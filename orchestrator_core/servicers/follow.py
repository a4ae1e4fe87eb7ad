"""Following a job: its events from any point that is held, until the outcome. ORCH-2002, LO-301."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.events import SubscribersChanged
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.reader import Reader
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.flag import Flag
from orchestrator_core.servicers.late import bring_back, must_wait
from orchestrator_core.servicers.ownership import check_own
from orchestrator_core.wire import events as wire_events
from orchestrator_core.wire.frames import encode_event

QUEUED_EVERY_S = 1.0

Write = Callable[[bytes], Awaitable[None]]


class Audience:
    """Opens readers on jobs and counts who listens."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._counts: Counter[str] = Counter()

    async def follow(
        self, job_id: str, resume: events_pb2.ResumePoint | None, write: Write, *, observer: bool
    ) -> None:
        """Writes encoded StreamTokensResponses until the outcome was sent.

        While a write waits for its client nothing is taken from the log, so a slow one is sent
        several batches in a message, and an absent one holds at most one message here.

        Raises:
            RefusalError: NOT_FOUND, RESUME_WINDOW when what comes next is not held any more, or
            STORE_UNAVAILABLE when what would be told first is not durable.
        """
        await self._runtime.settled(job_id)
        check_own(self._runtime, job_id)
        job = self._runtime.job(job_id)
        log = self._runtime.relay.log(job_id)
        changed = Flag()
        wake = partial(self._runtime.relay.pace.wake, changed.set)
        reader = log.open(resume, wake, late=True)
        self.count(job_id, 0 if observer else 1)
        try:
            await self._send(job, log, reader, changed, write)
        finally:
            log.close(reader)
            self.count(job_id, 0 if observer else -1)

    def queued(self, job: Job) -> bytes:
        """The place of a waiting job, as an entry."""
        core = self._runtime.core
        shape = core.forecast(job)
        chance = core.on_time_probability(job, self._runtime.clock.now_ms())
        position = core.position(job) or 1
        return encode_event(wire_events.queued(position, shape.start_ms, shape.end_ms, chance))

    def count(self, job_id: str, change: int) -> None:
        """Tells the core of non-observing followers who came or left. LO-303."""
        if change == 0:
            return
        self._counts[job_id] += change
        count = self._counts[job_id]
        if count == 0:
            del self._counts[job_id]
        self._runtime.submit(SubscribersChanged(job_id, count))

    async def _send(
        self, job: Job, log: OutputLog, reader: Reader, changed: Flag, write: Write
    ) -> None:
        place = _Place()
        patience_s = self._runtime.core.config.reattach_grace_ms / 1000
        while not reader.done:
            changed.clear()
            if reader.lacks and not must_wait(job, log):
                await bring_back(self._runtime, job, log, reader)
            entries = [] if reader.lacks else reader.take()
            if entries:
                await write(entries[0] if len(entries) == 1 else b"".join(entries))
            if log.final is None and job.state is not JobState.QUEUED:
                # The usual case: after what there was, the next change is waited for. A job that
                # goes back to the queue wakes its readers too.
                place.left()
                await changed.wait()
            elif entries:
                place.left()
            elif job.state is JobState.QUEUED:
                wait_s = place.wait_s()
                if wait_s <= 0 and (event := place.told(self.queued(job))):
                    await write(event)
                await changed.wait(wait_s if wait_s > 0 else QUEUED_EVERY_S)
            # The outcome is known but its text is not here: a host holds it and may come back.
            elif not await changed.wait(patience_s):
                raise RefusalError(text_lost(job.job_id, log))


class _Place:
    """What a reader was last told about the queue, and when: at most once a second."""

    def __init__(self) -> None:
        self._event = b""
        self._at_s: float | None = None

    def wait_s(self) -> float:
        """Seconds until something may be told; 0 or less: now."""
        if self._at_s is None:
            return 0.0
        return self._at_s + QUEUED_EVERY_S - asyncio.get_running_loop().time()

    def told(self, event: bytes) -> bytes:
        """Returns the event to tell, or nothing when it is what was told before."""
        if event == self._event:
            return b""
        self._event, self._at_s = event, asyncio.get_running_loop().time()
        return event

    def left(self) -> None:
        """The job is not queued: when it is again, its place is news."""
        self._event = b""


def text_lost(job_id: str, log: OutputLog) -> Refusal:
    """The outcome of a job is known, but no host brings the text before it."""
    return Refusal(
        Reason.RESUME_WINDOW,
        f"job {job_id!r} ended, but its output is not held any more",
        metadata={"oldest_offset": str(log.oldest_offset)},
    )
