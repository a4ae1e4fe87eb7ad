"""A history in columns, what is expected of it, and what a rule has to say about it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from faults.history import (
    TERMINAL_STATES,
    AnyEvent,
    CancelAnswered,
    EnqueueAcked,
    JournalAccepted,
    JournalEnded,
    Outcome,
    Resumed,
    Started,
    StatusSeen,
    StreamBroken,
    StreamOpened,
    TextDelivered,
)

StreamEvent = StreamOpened | Started | Resumed | TextDelivered | Outcome | StreamBroken

_STREAM_EVENTS = (StreamOpened, Started, Resumed, TextDelivered, Outcome, StreamBroken)
_E = TypeVar("_E")


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: the invariant, the job or whatever it is about, and what proves it."""

    invariant: str
    job_id: str
    what: str
    events: tuple[AnyEvent, ...] = ()

    def __str__(self) -> str:
        proof = "".join(f"\n    {event}" for event in self.events)
        return f"{self.invariant} {self.job_id or '-'}: {self.what}{proof}"


@dataclass(frozen=True, slots=True)
class Expect:
    """What is known about a run beside its history.

    Attributes:
        texts: The whole output of jobs that an engine in the deterministic profile ran, by job id.
        tokens: How many tokens a job has if it finishes, by job id, where that is known.
        must_finish: Jobs that nothing but FINISHED is good enough for.
        settle_ms: After `Healed`, all accepted jobs must end within this time; None: not judged.
        retention_ms: How long an ended job is known; None: for the whole run.
        drop_lru: The queue's policy is drop-lru, so its victims are known.
        slack: How far a resource of `Measured` may lie above its value before the load.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    must_finish: Collection[str] = ()
    settle_ms: int | None = None
    retention_ms: int | None = None
    drop_lru: bool = True
    slack: Mapping[str, int] = field(default_factory=dict)


class Observed:
    """A history, indexed as the rules need it."""

    def __init__(self, events: tuple[AnyEvent, ...], expect: Expect) -> None:
        self.events = events
        self.expect = expect

    def all(self, kind: type[_E]) -> list[_E]:
        """The events of one kind, in order."""
        found: list[_E] = self._by_kind.get(kind, [])  # type: ignore[assignment] # keyed by type
        return found

    @cached_property
    def _by_kind(self) -> dict[type, list[AnyEvent]]:
        kinds: dict[type, list[AnyEvent]] = {}
        for event in self.events:
            kinds.setdefault(type(event), []).append(event)
        return kinds

    @cached_property
    def acked(self) -> dict[str, EnqueueAcked]:
        """The first acknowledgement of each accepted job."""
        acked: dict[str, EnqueueAcked] = {}
        for event in self.all(EnqueueAcked):
            acked.setdefault(event.job_id, event)
        return acked

    @cached_property
    def accepted(self) -> dict[str, EnqueueAcked | JournalAccepted]:
        """Every job that was promised an end: acknowledged, or durable."""
        accepted: dict[str, EnqueueAcked | JournalAccepted] = dict(self.acked)
        for event in self.all(JournalAccepted):
            accepted.setdefault(event.job_id, event)
        return accepted

    @cached_property
    def ends(self) -> dict[str, list[AnyEvent]]:
        """All that told a terminal state of a job, in order."""
        ends: dict[str, list[AnyEvent]] = {}
        for event in self.events:
            if isinstance(event, JournalEnded | Outcome | StatusSeen | CancelAnswered) and (
                event.state in TERMINAL_STATES
            ):
                ends.setdefault(event.job_id, []).append(event)
        return ends

    @cached_property
    def streams(self) -> dict[tuple[str, str], list[StreamEvent]]:
        """The events of each reader of a job, by client and stream."""
        streams: dict[tuple[str, str], list[StreamEvent]] = {}
        for event in self.events:
            if isinstance(event, _STREAM_EVENTS):
                streams.setdefault((event.client, event.stream), []).append(event)
        return streams


def state_of(event: AnyEvent) -> str:
    """The state that an event tells of a job; empty when it tells none."""
    if isinstance(event, JournalEnded | Outcome | StatusSeen | CancelAnswered):
        return event.state
    return ""
