"""What outside observers of a run saw, as immutable events in one order.

A history is written by those who watch: clients, engines, whoever reads the journal, and whoever
kills processes. The system under test writes nothing. A simulation has one exact order; a run of
real processes merges its observers' lines by `at_ms`, and leaves out what cannot be seen there.

`at_ms` is milliseconds on the clock of the run. Histories are JSON lines: `write` and `read`.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from faults.event import Event
from faults.operator_events import OperatorEvent

TERMINAL_STATES = frozenset({"FINISHED", "CANCELLED", "EXPIRED", "DROPPED", "FAILED"})
"""Names of the states that nothing follows, as on the wire without their prefix."""

UNKNOWN_JOB = "NOT_FOUND"
"""Stands for the state of a job that the server says it does not know."""


# --- a client's calls


class EnqueueSent(Event, frozen=True, kw_only=True, tag=True):
    """A client is about to give a job, perhaps again. `priority` is INTERACTIVE or BATCH."""

    client: str
    request_id: str
    priority: str = "INTERACTIVE"


class EnqueueAcked(Event, frozen=True, kw_only=True, tag=True):
    """The server accepted the job: from now on it must not be lost."""

    client: str
    request_id: str
    job_id: str


class EnqueueRefused(Event, frozen=True, kw_only=True, tag=True):
    """The server said no; nothing was queued by this call."""

    client: str
    request_id: str
    reason: str


class EnqueueUnknown(Event, frozen=True, kw_only=True, tag=True):
    """No answer came: the job may or may not have been accepted."""

    client: str
    request_id: str
    reason: str


class CancelSent(Event, frozen=True, kw_only=True, tag=True):
    """A client is about to cancel a job."""

    client: str
    job_id: str


class CancelAnswered(Event, frozen=True, kw_only=True, tag=True):
    """The server told the job's state after a cancel that was sent at `asked_ms`."""

    client: str
    job_id: str
    state: str
    asked_ms: int


class StatusSeen(Event, frozen=True, kw_only=True, tag=True):
    """The answer to a question for the job's state that was sent at `asked_ms`.

    A server that does not know the job answers `UNKNOWN_JOB`.
    """

    client: str
    job_id: str
    state: str
    asked_ms: int


# --- a client's stream: one `stream` id stands for all calls over which a reader follows a job


class StreamOpened(Event, frozen=True, kw_only=True, tag=True):
    """A reader begins to follow a job, with `text_offset` UTF-8 bytes of `attempt` in hand.

    A reader that `acknowledges` lets go what it has read.
    """

    client: str
    stream: str
    job_id: str
    attempt: int = 0
    text_offset: int = 0
    acknowledges: bool = False


class Started(Event, frozen=True, kw_only=True, tag=True):
    """The stream told that an attempt runs."""

    client: str
    stream: str
    job_id: str
    attempt: int


class Resumed(Event, frozen=True, kw_only=True, tag=True):
    """The stream told that a later attempt takes up the text.

    `mode` is VERIFIED_REPLAY or CONTINUE; RESTARTED takes back all text.
    """

    client: str
    stream: str
    job_id: str
    attempt: int
    mode: str
    text_offset: int


class TextDelivered(Event, frozen=True, kw_only=True, tag=True):
    """The stream delivered text. `text_offset` counts UTF-8 bytes before it.

    `prefix_digest` is what the server says about the text before it, where the reader looked.
    """

    client: str
    stream: str
    job_id: str
    attempt: int
    text_offset: int
    text: str
    prefix_digest: int | None = None


class Outcome(Event, frozen=True, kw_only=True, tag=True):
    """The stream told the job's terminal state.

    `text_bytes`, `text_digest` and `tokens_out` are what the server says about the whole text,
    where it does.
    """

    client: str
    stream: str
    job_id: str
    state: str
    reason: str = ""
    text_bytes: int | None = None
    text_digest: int | None = None
    tokens_out: int | None = None


class StreamBroken(Event, frozen=True, kw_only=True, tag=True):
    """The reader gave up following: not by its own will, and without an outcome.

    `reason` is the error's stable reason, STREAM_INTEGRITY where the reader itself found a defect.
    """

    client: str
    stream: str
    job_id: str
    reason: str


# --- a host: what its engines do


class AttemptBegan(Event, frozen=True, kw_only=True, tag=True):
    """An engine took up an attempt, in one of `slots_total` slots.

    `text` is all that the job has once the engine is done: what it was given to continue, and what
    it makes of that. None where nobody knows it beforehand.
    """

    host: str
    pool: str
    replica: str
    job_id: str
    attempt: int
    slots_total: int
    text: str | None = None


class AttemptEnded(Event, frozen=True, kw_only=True, tag=True):
    """The engine works on the attempt no more."""

    host: str
    pool: str
    replica: str
    job_id: str
    attempt: int


class EndHeld(Event, frozen=True, kw_only=True, tag=True):
    """A host has all of an attempt's text and its regular end, and has perhaps told nobody yet."""

    host: str
    job_id: str
    attempt: int


class ReplicaGone(Event, frozen=True, kw_only=True, tag=True):
    """One incarnation of an engine is gone, with all that it worked on."""

    host: str
    pool: str
    replica: str


# --- the journal, as whoever reads it finds it: durable when observed, in the order of decisions;
# `epoch` is that of the orchestrator that wrote, 0 where it is not known


class JournalAccepted(Event, frozen=True, kw_only=True, tag=True):
    """The record of an accept. `seq` is the arrival number; `displaced` was dropped for it.

    Jobs of one `lane` and `priority` need the same of a pool. `model` is the id of the model.
    """

    job_id: str
    request_id: str
    seq: int
    priority: str
    lane: str = ""
    displaced: str = ""
    model: str = ""
    epoch: int = 0


class JournalDispatched(Event, frozen=True, kw_only=True, tag=True):
    """The record of an attempt. `decided_ms` is when it was decided, where that is known."""

    job_id: str
    attempt: int
    pool: str
    replica: str
    decided_ms: int | None = None
    epoch: int = 0


class JournalEnded(Event, frozen=True, kw_only=True, tag=True):
    """The record of a terminal state; `reason` is that of a failure."""

    job_id: str
    state: str
    reason: str = ""
    epoch: int = 0


class OfferDeclined(Event, frozen=True, kw_only=True, tag=True):
    """A job let an offer pass by a declared rule: others may overtake it."""

    job_id: str


class AttemptGivenUp(Event, frozen=True, kw_only=True, tag=True):
    """An attempt was given up by a declared rule: its host was away for longer than the grace."""

    job_id: str
    attempt: int


class QueueSeen(Event, frozen=True, kw_only=True, tag=True):
    """So many new jobs wait, of `capacity`. Jobs that wait for a retry do not count."""

    queued: int
    capacity: int


# --- processes


class Crashed(Event, frozen=True, kw_only=True, tag=True):
    """A process was killed or cut off: `process` is orchestrator, or a host's id."""

    process: str


class Restarted(Event, frozen=True, kw_only=True, tag=True):
    """A process was started again."""

    process: str


class Recovered(Event, frozen=True, kw_only=True, tag=True):
    """What an orchestrator found in its journal at a start: the state of every job, by id.

    `models` are state and revision of the catalog's, `drains` the pools that an operator drains;
    None where they are not observed.
    """

    epoch: int
    states: Mapping[str, str]
    models: Mapping[str, tuple[str, int]] | None = None
    drains: tuple[str, ...] | None = None


class Obeyed(Event, frozen=True, kw_only=True, tag=True):
    """A host sent what it has on a stream of the orchestrator with this epoch, so it obeys it."""

    host: str
    epoch: int


class Fenced(Event, frozen=True, kw_only=True, tag=True):
    """The orchestrator with this epoch found that another has its journal, and ends."""

    epoch: int


class Healed(Event, frozen=True, kw_only=True, tag=True):
    """From now on nothing is injected any more."""


class Measured(Event, frozen=True, kw_only=True, tag=True):
    """Resources of a process when nothing is under way, `before` the load or after it.

    For example rss_bytes, fds, tasks, streams, bindings, held_attempts, relay_bytes.
    """

    process: str
    before: bool
    measures: Mapping[str, int]


AnyEvent = (
    EnqueueSent
    | EnqueueAcked
    | EnqueueRefused
    | EnqueueUnknown
    | CancelSent
    | CancelAnswered
    | StatusSeen
    | StreamOpened
    | Started
    | Resumed
    | TextDelivered
    | Outcome
    | StreamBroken
    | AttemptBegan
    | AttemptEnded
    | EndHeld
    | ReplicaGone
    | JournalAccepted
    | JournalDispatched
    | JournalEnded
    | OfferDeclined
    | AttemptGivenUp
    | QueueSeen
    | Crashed
    | Restarted
    | Recovered
    | Obeyed
    | Fenced
    | Healed
    | Measured
    | OperatorEvent
)
History = tuple[AnyEvent, ...]

_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(AnyEvent)


def write(events: Iterable[AnyEvent]) -> bytes:
    """The events as JSON lines; equal histories give equal bytes."""
    return b"".join(_ENCODER.encode(event) + b"\n" for event in events)


def read(lines: bytes) -> History:
    """The events in JSON lines, in their order.

    A last line that a killed writer left unfinished, without its newline, is dropped.

    Raises:
        ValueError: for any other line that is not an event, naming it.
    """
    return tuple(_events(lines))


def _events(lines: bytes) -> Iterator[AnyEvent]:
    whole = lines[: lines.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            yield _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"line {number} is not an event: {error}") from error


def merge(*histories: Iterable[AnyEvent]) -> History:
    """One history of several observers, by time; each observer's own order is kept."""
    return tuple(sorted((e for history in histories for e in history), key=lambda e: e.at_ms))
