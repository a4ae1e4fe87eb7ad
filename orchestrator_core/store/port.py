"""The port between the orchestrator and its journal.

A journal holds accepts, dispatches, terminals, sessions, drains of pools, the catalog of models and
the index of artifacts; never tokens. Of a session, a pool, a model and an artifact only the latest
record counts. It has one writer. A batch is all or nothing: after `commit` returns, every record of
it survives a crash. LO-305.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator_core.core.events import Recovered
from orchestrator_core.core.records import (
    CatalogRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
)
from orchestrator_core.store.artifact import ArtifactChange, ArtifactRecord

JOURNAL_ID_BYTES = 16


class StoreError(Exception):
    """Base of what a store raises.

    StoreError
    ├── StoreUnavailableError      the batch was certainly not written
    ├── StoreOutcomeUnknownError   the batch may or may not have been written: ask `holds`
    ├── StoreCorruptError          the journal cannot be opened; names the file and what to do
    └── StoreTakenError            another orchestrator has the journal now: this one must end
    """


class StoreUnavailableError(StoreError):
    """The batch was certainly not written."""


class StoreOutcomeUnknownError(StoreError):
    """The batch may or may not have been written: ask `holds` before answering anybody."""


class StoreCorruptError(StoreError):
    """The journal cannot be opened. The message names the file and what to do."""


class StoreTakenError(StoreError):
    """Another orchestrator has the journal now; what is decided here counts no more.

    The message names the file.
    """


@dataclass(frozen=True, slots=True)
class Opened:
    """What the journal held when it was opened.

    `epoch` is one more than at the last opening, durable before this is returned. `last_ms` is the
    latest instant found in any record, 0 when there is none: the core's clock never goes below it.
    `journal_id` is random and as old as the journal: epochs compare only within one of them.
    `artifacts` are in the order of their first put; the core does not know of them.
    """

    epoch: int
    last_ms: int
    recovered: Recovered
    journal_id: str
    artifacts: tuple[ArtifactRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """Which ended jobs a journal keeps: those since `ended_since_ms`.

    Of these no more than `ended_max` and no more than fit into `bytes_max`, the oldest go first;
    but the last `ended_min` in any case.
    """

    ended_since_ms: int
    ended_max: int
    ended_min: int
    bytes_max: int


def latest_only(batch: Sequence[Record]) -> list[Record]:
    """A batch without the records of sessions, pools and models that later ones of it replace."""
    last: dict[tuple[str, str], int] = {}
    for index, record in enumerate(batch):
        key = _replaced_by_key(record)
        if key is not None:
            last[key] = index
    if not last:
        return list(batch)
    kept = set(last.values())
    return [
        record
        for index, record in enumerate(batch)
        if index in kept or _replaced_by_key(record) is None
    ]


def _replaced_by_key(record: Record) -> tuple[str, str] | None:
    """What a later record with the same key replaces; None for records that all count."""
    if isinstance(record, SessionRecord | SessionForgotten):
        return record.identity, record.session_id
    # No identity begins with NUL.
    if isinstance(record, CatalogRecord):
        return "\0model", record.entry.card.model_id
    return ("\0pool", record.pool_id) if isinstance(record, PoolDrainRecord) else None


class Store(Protocol):
    """A journal. All methods run on the event loop and never block it.

    Whoever opens it last has it: nothing that an earlier one asks for takes effect from then on,
    wherever it slept meanwhile.
    """

    async def open(self) -> Opened:
        """Opens or creates the journal. Raises `StoreCorruptError`."""
        ...

    async def commit(self, batch: Sequence[Record]) -> None:
        """Writes a batch durably, all or nothing. Records that are held already change nothing.

        A terminal deletes the payload of its job, which nobody needs any more.

        One call at a time. Raises `StoreUnavailableError` or `StoreOutcomeUnknownError`; as all
        that follow, `StoreTakenError`.
        """
        ...

    async def holds(self, batch: Sequence[Record]) -> bool:
        """Tells whether a batch of unknown outcome was written. Raises `StoreUnavailableError`.

        An empty batch only asks whether the journal is still this orchestrator's.
        """
        ...

    async def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """Writes changes of the index of artifacts durably, all or nothing, in their order.

        Repeatable: after an unknown outcome, write them again. May be called while `commit` is
        under way. Raises as `commit`.
        """
        ...

    async def prune(self, keep: Keep) -> int:
        """Deletes all ended jobs but those to keep, the oldest first; returns how many."""
        ...

    async def close(self) -> None:
        """Releases files and threads. Idempotent."""
        ...
