"""What must hold over crashes: nothing told too early, all ended in time, nothing left behind.

And over takeovers: nothing of an orchestrator that was replaced takes effect.
"""

from collections.abc import Callable, Iterator, Sequence

from faults.history import (
    TERMINAL_STATES,
    AttemptGivenUp,
    CancelAnswered,
    Crashed,
    EndHeld,
    EnqueueAcked,
    Healed,
    JournalAccepted,
    JournalDispatched,
    JournalEnded,
    Measured,
    Obeyed,
    Outcome,
    Recovered,
    StatusSeen,
)
from faults.observed import Observed, Violation
from faults.operator_events import JournalModel
from faults.operator_rules import grace_over


def durable_before_told(observed: Observed) -> Iterator[Violation]:
    """I14: whatever anybody was told is in the journal by then, so that no crash can undo it."""
    accepted: set[str] = set()
    ended: dict[str, str] = {}
    if not observed.all(JournalAccepted):
        return
    for event in observed.events:
        match event:
            case JournalAccepted():
                accepted.add(event.job_id)
            case JournalEnded():
                ended[event.job_id] = event.state
            case EnqueueAcked():
                if event.job_id not in accepted:
                    what = "acknowledged before its record was durable"
                    yield Violation("I14", event.job_id, what, (event,))
            case Outcome() | StatusSeen() | CancelAnswered():
                told_early = event.state in TERMINAL_STATES and event.job_id not in ended
                if told_early and event.job_id in accepted:
                    what = f"{event.state} was told before its record was durable"
                    yield Violation("I14", event.job_id, what, (event,))
            case _:
                pass


def finished_counts(observed: Observed) -> Iterator[Violation]:
    """I21: what an engine has finished is what becomes of the job: it neither fails nor runs again.

    But for one whose host is killed, or away for longer than the grace, before that is known.
    """
    held: dict[str, EndHeld] = {}
    present: dict[str, int] = {}
    for event in observed.events:
        match event:
            case EndHeld() if present.get(event.job_id) == event.attempt:
                held[event.job_id] = event
            case AttemptGivenUp():
                if present.get(event.job_id) == event.attempt:
                    del present[event.job_id]
                    held.pop(event.job_id, None)
            case Crashed():
                held = {job: end for job, end in held.items() if end.host != event.process}
            case JournalDispatched():
                present[event.job_id] = event.attempt
                end = held.pop(event.job_id, None)
                if end is not None:
                    yield Violation("I21", event.job_id, "finished, and begun anew", (end, event))
            case JournalEnded():
                present.pop(event.job_id, None)
                end = held.pop(event.job_id, None)
                if end is not None and event.state == "FAILED":
                    yield Violation("I21", event.job_id, "finished, and FAILED", (end, event))
            case _:
                pass


def recovered_as_seen(observed: Observed) -> Iterator[Violation]:
    """I14: a start finds every job that was promised, in a state that its clients may know."""
    durable: dict[str, str] = {}
    promised: dict[str, EnqueueAcked] = {}
    models: dict[str, JournalModel] = {}
    model_of: dict[str, str] = {}
    journal_seen = bool(observed.all(JournalAccepted))
    for event in observed.events:
        match event:
            case JournalAccepted():
                durable[event.job_id] = "QUEUED"
                model_of[event.job_id] = event.model
            case JournalModel():
                models[event.model] = event
            case JournalDispatched() if event.job_id in durable:
                durable[event.job_id] = "DISPATCHED"
            case JournalEnded():
                durable[event.job_id] = event.state
            case EnqueueAcked():
                promised.setdefault(event.job_id, event)
            case Outcome() if not journal_seen:
                durable[event.job_id] = event.state
            case Recovered():
                yield from _lost(event, promised)
                over = {name for name, model in models.items() if grace_over(model, event.at_ms)}
                due = {job_id for job_id, name in model_of.items() if name in over}
                yield from _changed(event, durable, due, journal_seen=journal_seen)
            case _:
                pass


def _lost(recovered: Recovered, promised: dict[str, EnqueueAcked]) -> Iterator[Violation]:
    for job_id, acked in promised.items():
        if job_id not in recovered.states:
            what = f"lost by the restart with epoch {recovered.epoch}"
            yield Violation("I14", job_id, what, (acked,))


def _changed(
    recovered: Recovered, durable: dict[str, str], due: set[str], *, journal_seen: bool
) -> Iterator[Violation]:
    what = f"recovered with epoch {recovered.epoch} as"
    for job_id, state in recovered.states.items():
        written = durable.get(job_id)
        if written is None:
            if journal_seen:
                yield Violation("I14", job_id, f"{what} {state}, but never accepted")
        elif written in TERMINAL_STATES and state != written:
            yield Violation("I14", job_id, f"{what} {state}, but it was {written}")
        elif journal_seen and state in TERMINAL_STATES - {written}:
            # What was due while nobody served is decided as soon as somebody does.
            if state == "EXPIRED" or (state == "FAILED" and job_id in due):
                continue
            yield Violation("I14", job_id, f"{what} {state}, but no end was written")


def epochs_kept(observed: Observed) -> Iterator[Violation]:
    """I13: no write and no stream of an orchestrator that was replaced takes effect."""
    latest: Recovered | None = None
    obeyed: dict[str, Obeyed] = {}
    for event in observed.events:
        match event:
            case Recovered():
                latest = event
            case JournalAccepted() | JournalDispatched() | JournalEnded():
                if latest is not None and 0 < event.epoch < latest.epoch:
                    what = f"written with epoch {event.epoch} after {latest.epoch} began"
                    yield Violation("I13", event.job_id, what, (event,))
            case Crashed():
                # A host that starts anew holds nothing, and has seen no epoch.
                obeyed.pop(event.process, None)
            case Obeyed():
                earlier = obeyed.setdefault(event.host, event)
                if event.epoch < earlier.epoch:
                    what = f"{event.host} obeyed epoch {event.epoch} after {earlier.epoch}"
                    yield Violation("I13", "", what, (earlier, event))
                else:
                    obeyed[event.host] = event
            case _:
                pass


def all_ended(observed: Observed) -> Iterator[Violation]:
    """I15: once faults are healed, every accepted job ends within the time allowed."""
    healed, settle_ms = observed.all(Healed), observed.expect.settle_ms
    if settle_ms is None:
        return
    for job_id, accepted in observed.accepted.items():
        ends = observed.ends.get(job_id, [])
        if not ends:
            yield Violation("I15", job_id, "accepted, and never ended", (accepted,))
        elif healed and ends[0].at_ms > max(healed[-1].at_ms, accepted.at_ms) + settle_ms:
            what = f"ended later than {settle_ms} ms after all faults were healed"
            yield Violation("I15", job_id, what, (accepted, ends[0]))


def no_leak(observed: Observed) -> Iterator[Violation]:
    """I16: when nothing is under way, every resource is back where it was before the load."""
    before: dict[str, Measured] = {}
    for measured in observed.all(Measured):
        if measured.before:
            before.setdefault(measured.process, measured)
            continue
        first = before.get(measured.process)
        for name, value in sorted(measured.measures.items()):
            least = first.measures.get(name, 0) if first is not None else 0
            if value > least + observed.expect.slack.get(name, 0):
                what = f"{measured.process} keeps {name} {value}, before the load {least}"
                yield Violation(
                    "I16", "", what, (measured,) if first is None else (first, measured)
                )


RULES: Sequence[Callable[[Observed], Iterator[Violation]]] = (
    durable_before_told,
    finished_counts,
    recovered_as_seen,
    epochs_kept,
    all_ended,
    no_leak,
)
