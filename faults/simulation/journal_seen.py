"""Records of the journal as whoever reads it finds them."""

from collections.abc import Callable
from typing import assert_never

from faults import history as h
from faults import operator_events as o
from faults.simulation.orchestrator import EPOCH_MS
from orchestrator_core.core.catalog_model import ModelState
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
from orchestrator_core.core.spec import Needs

Tell = Callable[..., None]
"""Takes the kind of an event, and its fields."""


def tell_durable(record: Record, epoch: int, tell: Tell) -> None:
    """Tells what became durable, if anybody outside can see it."""
    match record:
        case AcceptRecord(spec=spec):
            tell(
                h.JournalAccepted,
                job_id=spec.job_id,
                request_id=spec.request_id,
                seq=record.seq,
                priority=spec.priority.name,
                lane=_lane(spec.needs),
                displaced=record.displaced or "",
                model=spec.needs.model_id,
                epoch=epoch,
            )
        case DispatchRecord():
            tell(
                h.JournalDispatched,
                job_id=record.job_id,
                attempt=record.attempt,
                pool=record.pool_id,
                replica=record.replica_id,
                decided_ms=record.sent_ms - EPOCH_MS,
                epoch=epoch,
            )
        case TerminalRecord():
            error = record.outcome.error
            tell(
                h.JournalEnded,
                job_id=record.job_id,
                state=record.state.name,
                reason="" if error is None else error.reason.value,
                epoch=epoch,
            )
        case PoolDrainRecord():
            tell(o.JournalDrain, pool=record.pool_id, draining=not record.over, epoch=epoch)
        case CatalogRecord():
            _tell_model(record, epoch, tell)
        case SessionRecord() | SessionForgotten():
            pass  # nobody outside sees them
        case _:
            assert_never(record)


def _tell_model(record: CatalogRecord, epoch: int, tell: Tell) -> None:
    entry = record.entry
    retired = entry.state is ModelState.RETIRED
    tell(
        o.JournalModel,
        model=entry.card.model_id,
        state="" if record.over else entry.state.name,
        revision=entry.revision,
        stated_by=dict(entry.card.labels).get("act", ""),
        retired_by=entry.replaced_by,
        grace_ends_ms=(entry.grace_until_ms or 0) - EPOCH_MS if retired else None,
        epoch=epoch,
    )


def _lane(needs: Needs) -> str:
    """Jobs need the same where this is equal: of a simulated job nothing else differs."""
    return " ".join((needs.engine, *needs.engines, "deterministic" * needs.deterministic)).strip()
