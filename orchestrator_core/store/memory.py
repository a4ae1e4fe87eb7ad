"""A journal that lives as long as its object: for tests, and for runs that may forget all."""

import enum
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from orchestrator_core.core.events import Recovered
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
from orchestrator_core.store.artifact import ArtifactChange, ArtifactRecord
from orchestrator_core.store.port import (
    JOURNAL_ID_BYTES,
    Keep,
    Opened,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
    latest_only,
)


class CommitFault(enum.Enum):
    """What goes wrong in one commit."""

    NONE = "none"
    UNAVAILABLE = "unavailable"
    UNKNOWN_WRITTEN = "unknown, but written"
    UNKNOWN_LOST = "unknown, and not written"


CommitFaults = Callable[[int, Sequence[Record]], CommitFault]
"""Decides about one commit by its number, from 1, and its records: none for artifacts."""


@dataclass(slots=True)
class MemoryJournal:
    """What outlives a `MemoryStore`, and what several of them may share."""

    accepts: dict[str, AcceptRecord] = field(default_factory=dict)
    dispatches: dict[tuple[str, int], DispatchRecord] = field(default_factory=dict)
    terminals: dict[str, TerminalRecord] = field(default_factory=dict)
    sessions: dict[tuple[str, str], SessionRecord] = field(default_factory=dict)
    drains: dict[str, PoolDrainRecord] = field(default_factory=dict)
    artifacts: dict[str, ArtifactRecord] = field(default_factory=dict)
    models: dict[str, CatalogRecord] = field(default_factory=dict)
    journal_id: str = field(default_factory=lambda: secrets.token_hex(JOURNAL_ID_BYTES))
    epoch: int = 0
    pruned_last_ms: int = 0


class MemoryStore:
    """Implements `orchestrator_core.store.port.Store`. Opening it again stands for a restart.

    Of several on one `journal` only the one that opened it last may use it.
    """

    def __init__(
        self, faults: CommitFaults | None = None, journal: MemoryJournal | None = None
    ) -> None:
        self._faults = faults
        self._journal = MemoryJournal() if journal is None else journal
        self._epoch = 0
        self._commits = 0
        self._opened = False

    async def open(self) -> Opened:
        """See `Store.open`."""
        journal = self._journal
        self._epoch = journal.epoch = journal.epoch + 1
        self._opened = True
        accepts = sorted(journal.accepts.values(), key=lambda record: record.seq)
        recovered = Recovered(
            tuple(accepts),
            tuple(journal.dispatches.values()),
            tuple(journal.terminals.values()),
            tuple(journal.sessions.values()),
            tuple(journal.drains.values()),
            tuple(journal.models[model_id] for model_id in sorted(journal.models)),
        )
        artifacts = sorted(journal.artifacts.values(), key=lambda record: record.seq)
        return Opened(self._epoch, self._last_ms(), recovered, journal.journal_id, tuple(artifacts))

    async def commit(self, batch: Sequence[Record]) -> None:
        """See `Store.commit`."""
        self._commit(batch, lambda: self._write(batch))

    async def write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        """See `Store.write_artifacts`."""
        self._commit((), lambda: self._write_artifacts(changes))

    def _commit(self, batch: Sequence[Record], write: Callable[[], None]) -> None:
        self._require_open()
        self._commits += 1
        fault = CommitFault.NONE if self._faults is None else self._faults(self._commits, batch)
        match fault:
            case CommitFault.NONE:
                write()
            case CommitFault.UNAVAILABLE:
                raise StoreUnavailableError("the journal refused the batch (injected)")
            case CommitFault.UNKNOWN_WRITTEN:
                write()
                raise StoreOutcomeUnknownError("the outcome of the batch is unknown (injected)")
            case CommitFault.UNKNOWN_LOST:
                raise StoreOutcomeUnknownError("the outcome of the batch is unknown (injected)")
            case _:
                assert_never(fault)

    async def holds(self, batch: Sequence[Record]) -> bool:
        """See `Store.holds`."""
        self._require_open()
        return all(self._holds(record) for record in latest_only(batch))

    async def prune(self, keep: Keep) -> int:
        """See `Store.prune`. Bytes are not counted here."""
        self._require_open()
        oldest = sorted(self._journal.terminals.values(), key=lambda record: record.ended_ms)
        due = sum(record.ended_ms < keep.ended_since_ms for record in oldest)
        excess = min(len(oldest) - keep.ended_max, len(oldest) - keep.ended_min)
        ended = {record.job_id: record.ended_ms for record in oldest[: max(due, excess)]}
        self._forget(ended.keys())
        self._journal.pruned_last_ms = max(self._journal.pruned_last_ms, *ended.values(), 0)
        return len(ended)

    async def close(self) -> None:
        """See `Store.close`."""
        self._opened = False

    def _require_open(self) -> None:
        if not self._opened:
            raise StoreUnavailableError("the journal is closed")
        if self._journal.epoch != self._epoch:
            taken = f"epoch {self._journal.epoch}, not {self._epoch}"
            raise StoreTakenError(f"the journal was taken over by another orchestrator ({taken})")

    def _write_artifacts(self, changes: Sequence[ArtifactChange]) -> None:
        held = self._journal.artifacts
        for change in changes:
            if isinstance(change, ArtifactRecord):
                held[change.artifact_id] = change
            else:
                held.pop(change.artifact_id, None)

    def _write(self, batch: Sequence[Record]) -> None:
        """Looks at the whole batch before it changes anything: all or nothing."""
        new = {record.spec.job_id for record in batch if isinstance(record, AcceptRecord)}
        for record in batch:
            self._check(record, new)
        # Accepts first, as the dispatches and terminals of a batch may belong to them.
        for record in sorted(batch, key=lambda record: not isinstance(record, AcceptRecord)):
            self._write_one(record)

    def _check(self, record: Record, new: set[str]) -> None:
        if isinstance(record, AcceptRecord):
            job_id, journal = record.spec.job_id, self._journal
            held = journal.accepts.get(job_id)
            if held is not None and held.seq != record.seq and job_id not in journal.terminals:
                raise ValueError(f"job {job_id} is accepted already and has not ended")
        elif isinstance(record, SessionRecord | SessionForgotten | PoolDrainRecord | CatalogRecord):
            return
        elif record.job_id not in self._journal.accepts and record.job_id not in new:
            raise ValueError(f"job {record.job_id} was never accepted")

    def _write_one(self, record: Record) -> None:  # noqa: C901 - one arm each
        match record:
            case AcceptRecord():
                job_id = record.spec.job_id
                held = self._journal.accepts.get(job_id)
                if held is not None and held.seq != record.seq:
                    self._forget({job_id})
                self._journal.accepts.setdefault(job_id, record)
            case DispatchRecord():
                self._journal.dispatches.setdefault((record.job_id, record.attempt), record)
            case TerminalRecord():
                self._journal.terminals.setdefault(record.job_id, record)
                accepted = self._journal.accepts[record.job_id]
                bare = replace(accepted.spec, payload=b"")
                self._journal.accepts[record.job_id] = replace(accepted, spec=bare)
            case SessionRecord():
                self._journal.sessions[record.identity, record.session_id] = record
            case SessionForgotten():
                self._journal.sessions.pop((record.identity, record.session_id), None)
            case PoolDrainRecord():
                self._journal.drains.pop(record.pool_id, None)
                if not record.over:
                    self._journal.drains[record.pool_id] = record
            case CatalogRecord():
                model_id = record.entry.card.model_id
                self._journal.models.pop(model_id, None)
                if not record.over:
                    self._journal.models[model_id] = record
            case _:
                assert_never(record)

    def _holds(self, record: Record) -> bool:  # noqa: PLR0911 - one return per kind
        match record:
            case AcceptRecord():
                held = self._journal.accepts.get(record.spec.job_id)
                return held is not None and held.seq == record.seq
            case DispatchRecord():
                return (record.job_id, record.attempt) in self._journal.dispatches
            case TerminalRecord():
                return record.job_id in self._journal.terminals
            case SessionRecord():
                return self._journal.sessions.get((record.identity, record.session_id)) == record
            case SessionForgotten():
                return (record.identity, record.session_id) not in self._journal.sessions
            case PoolDrainRecord():
                held_drain = self._journal.drains.get(record.pool_id)
                return held_drain is None if record.over else held_drain == record
            case CatalogRecord():
                held_model = self._journal.models.get(record.entry.card.model_id)
                return held_model is None if record.over else held_model == record
            case _:
                assert_never(record)

    def _forget(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            del self._journal.accepts[job_id], self._journal.terminals[job_id]
        self._journal.dispatches = {
            key: record for key, record in self._journal.dispatches.items() if key[0] not in job_ids
        }

    def _last_ms(self) -> int:
        return max(
            self._journal.pruned_last_ms,
            *(record.accepted_ms for record in self._journal.accepts.values()),
            *(record.sent_ms for record in self._journal.dispatches.values()),
            *(record.ended_ms for record in self._journal.terminals.values()),
            *(record.used_ms for record in self._journal.sessions.values()),
            *(record.since_ms for record in self._journal.drains.values()),
            *(record.created_ms for record in self._journal.artifacts.values()),
            *(record.entry.updated_ms for record in self._journal.models.values()),
            0,
        )
