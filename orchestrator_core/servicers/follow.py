"""Following a job: its events from any point that is held, until the outcome. ORCH-2002, LO-301."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.events import SubscribersChanged
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.log import OutputLog, Reader
from orchestrator_core.runtime import Runtime
from orchestrator_core.wire import events as wire_events
from orchestrator_core.wire.frames import encode_event

QUEUED_EVERY_S = 1.0


class Followers:
    """Opens readers on jobs and counts who listens."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._counts: Counter[str] = Counter()

    async def follow(
        self, job_id: str, resume: events_pb2.ResumePoint | None, *, observer: bool
    ) -> AsyncIterator[bytes]:
        """Yields encoded StreamTokensResponses until the outcome was sent.

        Raises:
            RefusalError: NOT_FOUND, RESUME_WINDOW when what comes next is not held any more, or
            STORE_UNAVAILABLE when what would be told first is not durable.
        """
        await self._runtime.settled(job_id)
        job = self._runtime.job(job_id)
        log = self._runtime.relay.log(job_id)
        reader = log.open(resume)
        self._count(job_id, 0 if observer else 1)
        try:
            async for message in self._messages(job, log, reader):
                yield message
        finally:
            log.close(reader)
            self._count(job_id, 0 if observer else -1)

    async def _messages(self, job: Job, log: OutputLog, reader: Reader) -> AsyncIterator[bytes]:
        place = _Place()
        patience_s = self._runtime.core.config.reattach_grace_ms / 1000
        while not reader.done:
            entries = reader.take()
            if entries:
                place.left()
                yield b"".join(entries)
            elif job.state is JobState.QUEUED:
                wait_s = place.wait_s()
                if wait_s <= 0 and (event := place.told(self._queued(job))):
                    yield event
                await _wait(reader, wait_s if wait_s > 0 else QUEUED_EVERY_S)
            elif log.final is not None:
                # The outcome is known but its text is not here: a host holds it and may come back.
                if not await _wait(reader, patience_s):
                    raise RefusalError(_text_lost(job, log))
            else:
                place.left()  # A job that goes back to the queue wakes its readers.
                await _wait(reader, None)

    def _queued(self, job: Job) -> bytes:
        core = self._runtime.core
        shape = core.forecast(job)
        chance = core.on_time_probability(job, self._runtime.clock.now_ms())
        position = core.position(job) or 1
        return encode_event(wire_events.queued(position, shape.start_ms, shape.end_ms, chance))

    def _count(self, job_id: str, change: int) -> None:
        if change == 0:
            return
        self._counts[job_id] += change
        count = self._counts[job_id]
        if count == 0:
            del self._counts[job_id]
        self._runtime.submit(SubscribersChanged(job_id, count))


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


def _text_lost(job: Job, log: OutputLog) -> Refusal:
    return Refusal(
        Reason.RESUME_WINDOW,
        f"job {job.job_id!r} ended, but its output is not held any more",
        metadata={"oldest_offset": str(log.oldest_offset)},
    )


async def _wait(reader: Reader, timeout_s: float | None) -> bool:
    """Waits for a change; False when the time is over first."""
    try:
        async with asyncio.timeout(timeout_s):
            await reader.changed.wait()
    except TimeoutError:
        return False
    return True
