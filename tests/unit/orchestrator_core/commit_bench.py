"""An output commit on a journal that answers when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from orchestrator_core.commit import CommitGate
from orchestrator_core.core.effects import Gated, JobEnded, Receipt, ReplyAccepted
from orchestrator_core.core.outcome import Finish, Outcome, Usage
from orchestrator_core.core.records import AcceptRecord, Record, TerminalRecord
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.core.states import JobState
from orchestrator_core.store.port import Keep, Opened, StoreError, StoreUnavailableError

WAIT_S = 20.0


class GatedStore:
    """A store whose every commit waits for the test to say how it ends."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.arrived = asyncio.Event()
        self.verdicts: asyncio.Queue[StoreError | None] = asyncio.Queue()
        self.held = True
        self.asked = asyncio.Event()
        self.asked.set()
        self.unreadable = 0

    async def open(self) -> Opened:
        raise NotImplementedError

    async def commit(self, batch: Sequence[Record]) -> None:
        self.batches.append(list(batch))
        self.arrived.set()
        verdict = await self.verdicts.get()
        if verdict is not None:
            raise verdict

    async def holds(self, batch: Sequence[Record]) -> bool:
        await self.asked.wait()
        if self.unreadable:
            self.unreadable -= 1
            raise StoreUnavailableError("planted")
        return self.held and list(batch) in self.batches

    async def prune(self, keep: Keep) -> int:
        return keep.ended_max * 0

    async def close(self) -> None:
        return


class Recorder:
    """A running gate and everything that came out of it."""

    def __init__(self) -> None:
        self.store = GatedStore()
        self.released: list[Gated] = []
        self.reverted: list[tuple[str, ...]] = []
        self.refused: list[Gated] = []
        self.failed = asyncio.Event()
        self.gone: set[int] = set()
        self.slow: list[float] = []
        self.gate = CommitGate(
            self.store,
            self.released.append,
            self._revert,
            self._failed,
            lambda reply_to: reply_to not in self.gone,
            self.slow.append,
        )

    def _failed(self, _: StoreError) -> None:
        self.failed.set()

    def _revert(self, job_ids: tuple[str, ...], replies: Sequence[Gated]) -> None:
        self.reverted.append(job_ids)
        self.refused.extend(replies)

    async def committing(self) -> None:
        """Waits until a batch is at the store."""
        await asyncio.wait_for(self.store.arrived.wait(), WAIT_S)
        self.store.arrived.clear()


@asynccontextmanager
async def running() -> AsyncIterator[Recorder]:
    """A gate whose writer runs for the length of the block."""
    recorder = Recorder()
    task = asyncio.create_task(recorder.gate.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def accept(job_id: str, displaced: str | None = None) -> AcceptRecord:
    """An accept of a minimal job."""
    return AcceptRecord(JobSpec(job_id, Needs("tiny")), 1, 0, 1, None, None, displaced)


def reply(job_id: str) -> ReplyAccepted:
    """The answer to an accept."""
    return ReplyAccepted(1, Receipt(job_id, 1, None, None, None, 0))


def terminal(job_id: str) -> tuple[TerminalRecord, JobEnded]:
    """A regular end: its record and what subscribers are told."""
    outcome = Outcome(finish=Finish.EOS)
    record = TerminalRecord(job_id, JobState.FINISHED, outcome, Usage(), 1)
    return record, JobEnded(job_id, JobState.FINISHED, outcome, Usage())
