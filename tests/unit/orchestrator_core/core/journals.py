"""What a journal holds at a start, as a test says it."""

from orchestrator_core.core.events import (
    Recovered,
)
from orchestrator_core.core.records import AcceptRecord, DispatchRecord, Record, TerminalRecord
from tests.unit.orchestrator_core.core.bench import only


def journal(*effects: object) -> Recovered:
    """The journal of everything that was decided."""
    records: list[Record] = [
        e for e in effects if isinstance(e, AcceptRecord | DispatchRecord | TerminalRecord)
    ]
    return Recovered(
        tuple(only(records, AcceptRecord)),
        tuple(only(records, DispatchRecord)),
        tuple(only(records, TerminalRecord)),
    )
