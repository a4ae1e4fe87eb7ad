"""Readers that lack text which was evicted here: it comes from the job's host, for them alone.

LO-301. What was brought back lies at the reader's side until it is sent, so an Exchange has it for
few of its readers at a time.
"""

import asyncio
from collections.abc import Callable

from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.rereading import Wanted, read_again
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.reader import Reader
from orchestrator_core.relay.sides import SIDE_BYTES
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc

# Readers of one Exchange that have text at their side, or wait for some.
LATE_MAX = 8


def must_wait(job: Job, log: OutputLog) -> bool:
    """True while no host can have the text yet: another attempt is to begin, or repeats it."""
    attempt = job.attempt
    return job.live and (attempt is None or attempt.number != log.attempt or not log.next_index)


async def bring_back(
    runtime: Runtime, job: Job, log: OutputLog, reader: Reader, bytes_max: int = SIDE_BYTES
) -> None:
    """Puts what a reader lacks at its side, about `bytes_max` of it.

    Nothing where another attempt took over meanwhile: its output wakes the reader.

    Raises:
        RefusalError: RESUME_WINDOW when the job's host does not hold it either; NOT_FOUND when the
        job was forgotten.
    """
    if log.forgotten is not None:
        raise RefusalError(log.forgotten)
    attempt = job.attempt
    beginning = log.beginning() if reader.fresh else None
    items = await _held_text(runtime, job, log, Wanted(reader.offset, bytes_max, not job.live))
    if not items:
        if job.attempt is not attempt or must_wait(job, log):
            return
        raise log.out_of_window("the text that comes next is no longer held")
    if beginning is not None:
        reader.side.append(beginning)
    reader.side.extend(items)


async def _held_text(
    runtime: Runtime, job: Job, log: OutputLog, wanted: Wanted
) -> list[Item] | None:
    """Text from the attempt that runs; of an ended job from its last one, or from that before.

    The last one holds nothing where it never began.
    """
    grace_s = runtime.core.config.reattach_grace_ms / 1000
    for attempt in (job.attempt,) if job.live else (job.attempt, job.unreleased):
        if attempt is not None and (not job.live or attempt.number == log.attempt):
            items = await read_again(runtime.relay, runtime.hosts, attempt, wanted, grace_s)
            if items:
                return items
    return None


Told = Callable[[Refusal | None], None]
"""Called when text lies at the reader's side, or with the reason why there is none."""


class LateReads:
    """The readers of one Exchange that are brought text, `LATE_MAX` at a time. `tasks` are theirs.

    Whoever has the stream cancels the tasks with it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._runtime = runtime
        self._room = asyncio.Semaphore(LATE_MAX)

    def begin(
        self, job: Job, log: OutputLog, reader: Reader, bytes_max: int, told: Told
    ) -> "LateRead":
        """Brings a reader about `bytes_max`; the next in turn follows once that was `sent`.

        An error that is a bug of ours is logged, and told as INTERNAL.
        """
        late = LateRead()

        async def read() -> None:
            async with self._room:
                try:
                    await bring_back(self._runtime, job, log, reader, bytes_max)
                except Exception as error:  # noqa: BLE001 - the edge: it ends this job's reading
                    told(rpc.refusal_of(error))
                    return
                told(None)
                await late.sent.wait()

        late.task = asyncio.create_task(read())
        self.tasks.add(late.task)
        late.task.add_done_callback(self.tasks.discard)
        return late


class LateRead:
    """One reader's text on its way. `sent` is set when all that lay at its side was sent."""

    __slots__ = ("sent", "task")

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """The reader is gone."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
