"""Records for the tests of the stores, and batches whose prefixes can be told apart."""

from dataclasses import replace

from orchestrator_core.core.decision import Decision
from orchestrator_core.core.events import Recovered
from orchestrator_core.core.outcome import NO_USAGE, Finish, Outcome
from orchestrator_core.core.records import AcceptRecord, DispatchRecord, Record, TerminalRecord
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.core.states import JobState

NEEDS = Needs("model")
PAYLOAD = bytes(range(256)) * 4


def accept(number: int) -> AcceptRecord:
    """The accept of job `number`."""
    spec = JobSpec(f"job-{number}", NEEDS, payload=PAYLOAD)
    return AcceptRecord(spec, number, number, 1, None, None)


def dispatch(number: int) -> DispatchRecord:
    """The dispatch of job `number`."""
    job_id = f"job-{number}"
    decision = Decision(job_id, 1, 1, "pool", "score", (), 0, (), 0, 0)
    return DispatchRecord(
        job_id, 1, "pool", "replica", "host", number, decision, ("e", "v", "d", "s")
    )


def terminal(number: int) -> TerminalRecord:
    """The regular end of job `number`."""
    outcome = Outcome(finish=Finish.EOS)
    return TerminalRecord(f"job-{number}", JobState.FINISHED, outcome, NO_USAGE, number)


def batch(number: int) -> list[Record]:
    """Batch `number`, from 1: one record of each type, over two jobs."""
    if number == 1:
        return [accept(1), dispatch(1)]
    return [terminal(number - 1), accept(number), dispatch(number)]


def after(batches: int) -> Recovered:
    """What a journal holds after batches 1 to `batches`: of ended jobs no payload."""
    return Recovered(
        tuple(
            accept(n) if n == batches else replace(accept(n), spec=JobSpec(f"job-{n}", NEEDS))
            for n in range(1, batches + 1)
        ),
        tuple(dispatch(n) for n in range(1, batches + 1)),
        tuple(terminal(n) for n in range(1, batches)),
    )
