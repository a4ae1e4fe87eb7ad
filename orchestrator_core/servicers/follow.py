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
            RefusalError: NOT_FOUND, or RESUME_WINDOW when what comes next is not held any more.
        """
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
        told: bytes = b""
        patience_s = self._runtime.core.config.reattach_grace_ms / 1000
        while not reader.done:
            entries = reader.take()
            if entries:
                yield b"".join(entries)
                continue
            if job.state is JobState.QUEUED:
                told_before, told = told, self._queued(job)
                if told != told_before:
                    yield told
                await _wait(reader, QUEUED_EVERY_S)
            elif log.final is not None and not reader.done:
                # The outcome is known but its text is not here: a host holds it and may come back.
                if not await _wait(reader, patience_s):
                    raise RefusalError(_text_lost(job, log))
            else:
                await _wait(reader, None)

    def _queued(self, job: Job) -> bytes:
        core = self._runtime.core
        shape = core.forecast(job)
        position = core.position(job) or 1
        return encode_event(wire_events.queued(position, shape.start_ms, shape.end_ms))

    def _count(self, job_id: str, change: int) -> None:
        if change == 0:
            return
        self._counts[job_id] += change
        count = self._counts[job_id]
        if count == 0:
            del self._counts[job_id]
        self._runtime.submit(SubscribersChanged(job_id, count))


def _text_lost(job: Job, log: OutputLog) -> Refusal:
    return Refusal(
        Reason.RESUME_WINDOW,
        f"job {job.job_id!r} ended, but its output is not held any more",
        metadata={"oldest_offset": str(log.next_offset)},
    )


async def _wait(reader: Reader, timeout_s: float | None) -> bool:
    """Waits for a change; False when the time is over first."""
    try:
        async with asyncio.timeout(timeout_s):
            await reader.changed.wait()
    except TimeoutError:
        return False
    return True
