"""What the journal and the engines saw: order, bounds, slots, and each attempt once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from faults.history import (
    AttemptBegan,
    AttemptEnded,
    JournalAccepted,
    JournalDispatched,
    JournalEnded,
    OfferDeclined,
    QueueSeen,
    ReplicaGone,
)
from faults.observed import Observed, Violation


@dataclass(slots=True)
class _Queue:
    """Jobs that were accepted and never dispatched, in order of arrival."""

    waiting: dict[str, JournalAccepted] = field(default_factory=dict)
    declined: set[str] = field(default_factory=set)

    def overtaken(self, job: JournalAccepted) -> JournalAccepted | None:
        """An older job of the same lane and class that still waits by no rule of its own."""
        for other in self.waiting.values():
            older = other.seq < job.seq and other.job_id not in self.declined
            if older and (other.lane, other.priority) == (job.lane, job.priority):
                return other
        return None

    def victim(self, newcomer: JournalAccepted) -> str:
        """Whom drop-lru drops for a newcomer: oldest batch, then oldest interactive, never above.

        Empty when nobody may be dropped.
        """
        by_age = sorted(self.waiting.values(), key=lambda job: job.seq)
        batch = next((job.job_id for job in by_age if job.priority == "BATCH"), "")
        if batch or newcomer.priority == "BATCH":
            return batch
        return by_age[0].job_id if by_age else ""


def arrival_order(observed: Observed) -> Iterator[Violation]:
    """I5: jobs of one lane and class are dispatched in order of arrival."""
    queue = _Queue()
    for event in observed.events:
        match event:
            case JournalAccepted():
                queue.waiting[event.job_id] = event
            case OfferDeclined():
                queue.declined.add(event.job_id)
            case JournalEnded():
                queue.waiting.pop(event.job_id, None)
            case JournalDispatched():
                job = queue.waiting.pop(event.job_id, None)
                if job is not None and (older := queue.overtaken(job)) is not None:
                    what = f"dispatched before {older.job_id}, which came earlier"
                    yield Violation("I5", event.job_id, what, (older, event))
            case _:
                pass


def bounded_queue(observed: Observed) -> Iterator[Violation]:
    """I7: the queue keeps its bound, and the job that is dropped is the one that the rule names."""
    for seen in observed.all(QueueSeen):
        if seen.queued > seen.capacity:
            yield Violation("I7", "", f"{seen.queued} wait, {seen.capacity} may", (seen,))
    if observed.expect.drop_lru:
        yield from _victims(observed)


def _victims(observed: Observed) -> Iterator[Violation]:
    """The end of a victim and the accept for which it went may be written in either order."""
    queue, victims = _Queue(), dict[str, JournalAccepted]()
    ends: dict[str, JournalEnded] = {}
    for event in observed.events:
        match event:
            case JournalAccepted():
                if event.displaced in queue.waiting:
                    victims[event.displaced] = event
                    yield from _judged(queue, event)
                    del queue.waiting[event.displaced]
                queue.waiting[event.job_id] = event
            case JournalDispatched():
                queue.waiting.pop(event.job_id, None)
            case JournalEnded():
                ends[event.job_id] = event
                if event.state != "DROPPED":
                    queue.waiting.pop(event.job_id, None)
            case _:
                pass
    yield from _told(victims, ends)


def _told(
    victims: dict[str, JournalAccepted], ends: dict[str, JournalEnded]
) -> Iterator[Violation]:
    """Who was displaced is dropped, and nobody else."""
    for victim, newcomer in victims.items():
        found = ends.get(victim)
        if found is None or found.state != "DROPPED":
            proof = (newcomer,) if found is None else (newcomer, found)
            yield Violation("I7", victim, "displaced, but not told so", proof)
    for end in ends.values():
        if end.state == "DROPPED" and end.job_id not in victims:
            yield Violation("I7", end.job_id, "dropped for nobody", (end,))


def _judged(queue: _Queue, newcomer: JournalAccepted) -> Iterator[Violation]:
    right = queue.victim(newcomer)
    if newcomer.displaced != right:
        what = f"dropped for {newcomer.job_id}, the rule names {right or 'nobody'}"
        yield Violation("I7", newcomer.displaced, what, (newcomer,))


def slots_kept(observed: Observed) -> Iterator[Violation]:
    """I8: a pool never works on more attempts than it has slots."""
    busy: dict[str, dict[tuple[str, str, int], AttemptBegan]] = {}
    for event in observed.events:
        match event:
            case AttemptBegan():
                running = busy.setdefault(event.pool, {})
                running[event.replica, event.job_id, event.attempt] = event
                if len(running) > event.slots_total:
                    what = f"{len(running)} attempts in {event.slots_total} slots of {event.pool}"
                    yield Violation("I8", event.job_id, what, tuple(running.values()))
            case AttemptEnded():
                running = busy.get(event.pool, {})
                running.pop((event.replica, event.job_id, event.attempt), None)
            case ReplicaGone():
                running = busy.get(event.pool, {})
                for key in [key for key in running if key[0] == event.replica]:
                    del running[key]
            case _:
                pass


def dispatched_once(observed: Observed) -> Iterator[Violation]:
    """I9: each attempt is bound to one replica and begins once, after its record is durable."""
    records: dict[tuple[str, int], JournalDispatched] = {}
    begun: dict[tuple[str, int], AttemptBegan] = {}
    journal_seen = bool(observed.all(JournalDispatched))
    for event in observed.events:
        if isinstance(event, JournalDispatched):
            earlier = records.setdefault((event.job_id, event.attempt), event)
            if (earlier.pool, earlier.replica) != (event.pool, event.replica):
                yield Violation("I9", event.job_id, "an attempt on two replicas", (earlier, event))
        elif isinstance(event, AttemptBegan):
            key = (event.job_id, event.attempt)
            if key in begun:
                what = f"attempt {event.attempt} began twice"
                yield Violation("I9", event.job_id, what, (begun[key], event))
            begun.setdefault(key, event)
            record = records.get(key)
            if record is not None and record.replica != event.replica:
                what = f"attempt {event.attempt} began on a replica that it was not sent to"
                yield Violation("I9", event.job_id, what, (record, event))
            elif record is None and journal_seen:
                what = f"attempt {event.attempt} began before its record was durable"
                yield Violation("I9", event.job_id, what, (event,))


RULES: Sequence[Callable[[Observed], Iterator[Violation]]] = (
    arrival_order,
    bounded_queue,
    slots_kept,
    dispatched_once,
)
