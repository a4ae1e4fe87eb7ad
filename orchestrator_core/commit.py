"""Output commit: nothing leaves before the records it rests on are durable. LO-305.

One batch is in flight; what is decided meanwhile gathers in the next (group commit). A batch that
failed takes its accepts back and is otherwise tried again, with a growing, bounded pause.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeGuard, assert_never

from orchestrator_core import failpoints
from orchestrator_core.core.effects import (
    ConfirmEnd,
    Gated,
    JobEnded,
    ReplyAccepted,
    ReplyModel,
    ReplyPool,
    ReplySession,
    ReplyState,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
)
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.store.port import (
    Store,
    StoreError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)

# A transaction costs as much as dozens of records in it. After one with so many the next begins no
# earlier than this after it: under load most of what would follow at once comes a little later.
# After one with very many, which only thousands a second fill in that time, twice as much: half as
# many transactions, messages and turns of the loop.
BUSY_RECORDS = 4
FULL_RECORDS = 12
GATHER_S = 0.005
# A journal that takes longer is not broken, but callers are refused for it. They wait for a second:
# a little less, as the loop's clock counts whole milliseconds and a write begins after the call.
SLOW_S = 0.98
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 5.0

# What leaves because a job ended, and is untrue when the end is taken back.
_OF_AN_END = (JobEnded, ReplyState, ConfirmEnd)
Reply: TypeAlias = ReplyAccepted | ReplyState | ReplySession | ReplyPool | ReplyModel


@dataclass(slots=True)
class Batch:
    """Records to be made durable, and the effects and readers that wait for them.

    With `confirm` they wait until the store has said that the journal is still ours.
    """

    records: list[Record] = field(default_factory=list)
    gated: list[Gated] = field(default_factory=list)
    readers: dict[asyncio.Future[None], None] = field(default_factory=dict)
    confirm: bool = False

    def __bool__(self) -> bool:
        return bool(self.records or self.gated or self.readers or self.confirm)

    def without(self, gone: set[str], victims: set[str]) -> "Batch":
        """The batch without jobs that were never accepted, and without the end of their victims."""
        return Batch(
            [
                record
                for record in self.records
                if record_job_id(record) not in gone
                and not (isinstance(record, TerminalRecord) and record.job_id in victims)
            ],
            [
                effect
                for effect in self.gated
                if gated_job_id(effect) not in gone
                and not (isinstance(effect, _OF_AN_END) and effect.job_id in victims)
            ],
            self.readers,
            self.confirm,
        )

    def unanswered(self, gone: set[str], victims: set[str]) -> list[ReplyAccepted | ReplyState]:
        """Replies that a failed commit makes untrue: to the accepts, and to cancels of victims."""
        return [
            effect
            for effect in self.gated
            if (isinstance(effect, ReplyAccepted | ReplyState) and gated_job_id(effect) in gone)
            or (isinstance(effect, ReplyState) and effect.job_id in victims)
        ]


def record_job_id(record: Record) -> str:
    """Job that a record is about; empty for one about a session, a pool or a model."""
    match record:
        case AcceptRecord():
            return record.spec.job_id
        case DispatchRecord() | TerminalRecord():
            return record.job_id
        case SessionRecord() | SessionForgotten() | PoolDrainRecord() | CatalogRecord():
            return ""
        case _:
            assert_never(record)


def gated_job_id(effect: Gated) -> str:
    """Job that a gated effect is about; empty for one about a session, a pool or a model."""
    match effect:
        case ReplyAccepted():
            return effect.receipt.job_id
        case SendStart():
            return effect.spec.job_id
        case ReplyState() | SendCancel() | SendRelease() | JobEnded() | ConfirmEnd():
            return effect.job_id
        case ReplySession() | ReplyPool() | ReplyModel() | SendDrain():
            return ""
        case _:
            assert_never(effect)


def _may_be_dropped(effect: Gated) -> TypeGuard[Reply]:
    """True for a reply that is nothing but that: with the first one to a job its grace begins."""
    first = isinstance(effect, ReplyAccepted) and not effect.receipt.duplicate
    return isinstance(effect, Reply) and not first


class CommitGate:
    """Holds gated effects back until their batch is durable.

    `release` gets each effect, in order. `revert` gets the ids of accepts that never happened and
    the replies that waited for them; it may add to the gate. `awaited` says whether somebody still
    waits for the reply of that number. `on_slow` gets the seconds of a write above `SLOW_S`.
    `degraded` is True from a failure until the next try is due:
    what would only add to the trouble is then refused at once.
    """

    def __init__(
        self,
        store: Store,
        release: Callable[[Gated], None],
        revert: Callable[[tuple[str, ...], Sequence[ReplyAccepted | ReplyState]], None],
        on_error: Callable[[StoreError], None],
        awaited: Callable[[int], bool] = lambda _: True,
        on_slow: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._release = release
        self._revert = revert
        self._on_error = on_error
        self._awaited = awaited
        self._on_slow = on_slow
        self._given_up = 0
        self._abandoned: StoreError | None = None
        self._pending = Batch()
        self._writing: Batch | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._pause_s = PAUSE_MIN_S
        self.degraded = False

    def add(self, records: Sequence[Record], gated: Sequence[Gated]) -> None:
        """Takes one step's records and gated effects; with nothing to wait for, they leave now."""
        if not records and self._writing is None and not self._pending:
            for effect in gated:
                self._release(effect)
            return
        self._pending.records.extend(records)
        self._pending.gated.extend(gated)
        if self._pending:
            self._idle.clear()
            self._wake.set()

    def confirm(self) -> None:
        """Lets nothing leave, and nobody read, before the store says that the journal is ours.

        To be called when another orchestrator may have opened it unnoticed.
        """
        self._pending.confirm = True
        self._idle.clear()
        self._wake.set()

    @property
    def unsure(self) -> bool:
        """True until the store has answered a `confirm`, and for ever once it is abandoned."""
        writing = self._writing
        if self._abandoned is not None:
            return True
        return self._pending.confirm or (writing is not None and writing.confirm)

    def abandon(self, error: StoreError) -> None:
        """Nothing will be written any more: whoever waits to read, now or later, gets the error."""
        self._abandoned = error
        self.degraded = True
        for batch in (self._writing, self._pending):
            for reader in batch.readers if batch is not None else ():
                if not reader.done():
                    reader.set_exception(error)

    def give_up(self) -> None:
        """A caller went away: now and then, drops the replies that nobody awaits any more.

        Calls that are repeated while the journal is down must not pile up. O(1), amortised.
        """
        self._given_up += 1
        if 2 * self._given_up > len(self._pending.gated):
            self._drop_unawaited()

    def _drop_unawaited(self) -> None:
        self._given_up = 0
        self._pending.gated = [
            effect
            for effect in self._pending.gated
            if not _may_be_dropped(effect) or self._awaited(effect.reply_to)
        ]

    async def run(self) -> None:
        """Writes batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                began_s = loop.time()
                batch = self._writing = self._pending
                self._pending = Batch()
                await self._write(batch)
                self._writing = None
                if len(batch.records) >= BUSY_RECORDS:
                    full = len(batch.records) >= FULL_RECORDS
                    gather_s = 2 * GATHER_S if full else GATHER_S
                    await asyncio.sleep(began_s + gather_s - loop.time())
            self._idle.set()

    def undurable_drains(self) -> set[str]:
        """Pools whose drain, or the end of it, is not durable yet. O(records under way)."""
        return {
            record.pool_id
            for batch in self._under_way()
            for record in batch.records
            if isinstance(record, PoolDrainRecord)
        }

    async def drains_settled(self) -> None:
        """Returns once no drain is undurable. Raises as `settled`."""
        while self.undurable_drains():
            await self._durable()

    async def catalog_settled(self) -> None:
        """Returns once no change of the catalog is undurable. Raises as `settled`.

        What is changed while this waits is waited for too: the reader sees it.
        """
        if self.unsure:
            await self._durable()
        while self._catalog_changes():
            await self._durable()

    def _catalog_changes(self) -> bool:
        return any(
            isinstance(record, CatalogRecord)
            for batch in self._under_way()
            for record in batch.records
        )

    async def settled(self, job_id: str | None = None) -> None:
        """Returns once everything decided so far about a job, or about all, is durable.

        Raises:
            StoreError: that of `abandon`.
        """
        if self._concerned(job_id):
            await self._durable()

    async def _durable(self) -> None:
        """Returns once all that is under way is durable. Raises as `settled`."""
        if self._abandoned is not None:
            raise self._abandoned
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.readers[reader] = None
        self._idle.clear()
        self._wake.set()
        try:
            await reader
        finally:
            for batch in self._under_way():
                batch.readers.pop(reader, None)

    def _under_way(self) -> tuple[Batch, ...]:
        return (self._pending,) if self._writing is None else (self._writing, self._pending)

    def _concerned(self, job_id: str | None) -> bool:
        """True when something is not durable yet. O(records under way)."""
        batches = self._under_way()
        if self.unsure:
            return True
        if job_id is None:
            return any(batch.records for batch in batches)
        return any(record_job_id(r) == job_id for batch in batches for r in batch.records)

    async def flush(self) -> None:
        """Returns once nothing waits any more."""
        await self._idle.wait()

    async def _write(self, batch: Batch) -> None:
        try:
            await self._hand_over(batch)
        except StoreOutcomeUnknownError as error:
            self._on_error(error)
            written = await self._read_back(batch)
        except StoreUnavailableError as error:
            self._on_error(error)
            written = False
        else:
            written = True
        if not written:
            await self._failed(batch)
            return
        if batch.records or batch.confirm:
            self._pause_s = PAUSE_MIN_S
        for effect in batch.gated:
            self._release(effect)
        failpoints.reach("effects.released")
        for reader in batch.readers:
            if not reader.done():
                reader.set_result(None)

    async def _hand_over(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        if batch.confirm:
            await self._store.holds(())
        if batch.records:
            failpoints.reach("commit.before")
            await self._store.commit(batch.records)
            failpoints.reach("commit.after")
        took_s = loop.time() - began_s
        if took_s >= SLOW_S:
            self._on_slow(took_s)

    async def _read_back(self, batch: Batch) -> bool:
        """Asks until the store tells whether an uncertain batch was written."""
        self.degraded = True
        while True:
            try:
                held = await self._store.holds(batch.records)
            except StoreUnavailableError as error:
                self._on_error(error)
                await self._pause()
            else:
                self.degraded = False
                return held

    async def _failed(self, batch: Batch) -> None:
        """Takes the batch's accepts back, puts the rest in front of the next batch, and waits."""
        self.degraded = True
        accepts = [record for record in batch.records if isinstance(record, AcceptRecord)]
        victims = {record.displaced for record in accepts if record.displaced is not None}
        for record in self._pending.records:
            # A job that took the id of a victim cannot stand beside it.
            if isinstance(record, AcceptRecord) and record.spec.job_id in victims:
                accepts.append(record)
                if record.displaced is not None:
                    victims.add(record.displaced)
        gone = {record.spec.job_id for record in accepts}
        replies = [reply for b in (batch, self._pending) for reply in b.unanswered(gone, victims)]
        rest, later = batch.without(gone, victims), self._pending.without(gone, victims)
        self._pending = Batch(
            rest.records + later.records,
            rest.gated + later.gated,
            rest.readers | later.readers,
            rest.confirm or later.confirm,
        )
        self._drop_unawaited()
        if gone:
            self._revert(tuple(record.spec.job_id for record in accepts), replies)
        await self._pause()
        # The next try tells whether the journal can be written again, be it a repeated batch or a
        # new job that is let through.
        self.degraded = False

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
