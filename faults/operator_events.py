"""What is seen of an operator: what they asked for and were told, and what the journal has of it.

An act is one call, with an id of its own. `asked_ms` is when it was made; what an answer tells was
so at some instant between then and the answer.
"""

from faults.event import Event


class ActSent(Event, frozen=True, kw_only=True, tag=True):
    """An operator is about to change something.

    `kind` is register, update, retire, activate or delete, of the model `subject`; drain,
    undrain or renew, of the pool; or reload, of the configuration with the mark.
    """

    act: str
    kind: str
    subject: str


class ActDone(Event, frozen=True, kw_only=True, tag=True):
    """The server said that it is done."""

    act: str
    kind: str
    subject: str
    asked_ms: int


class ActRefused(Event, frozen=True, kw_only=True, tag=True):
    """The server said no: nothing may have changed."""

    act: str
    reason: str


class ActUnknown(Event, frozen=True, kw_only=True, tag=True):
    """No answer came: it may have been done, may be done later, or never."""

    act: str
    reason: str


class ModelSeen(Event, frozen=True, kw_only=True, tag=True):
    """What the server told of a model of the catalog; `state` is empty where there is none."""

    model: str
    state: str
    revision: int
    asked_ms: int


class PoolSeen(Event, frozen=True, kw_only=True, tag=True):
    """Whether a pool drains by an operator's word, as the server told as durable."""

    pool: str
    draining: bool
    asked_ms: int


class JournalModel(Event, frozen=True, kw_only=True, tag=True):
    """The record of a model: `state` is ACTIVE or RETIRED, empty once it is deleted.

    `stated_by` and `retired_by` are the acts that stated what it is, and that retired it.
    """

    model: str
    state: str
    revision: int
    stated_by: str
    retired_by: str
    grace_ends_ms: int | None
    epoch: int = 0


class JournalDrain(Event, frozen=True, kw_only=True, tag=True):
    """The record of an operator's drain of a pool, or of its end."""

    pool: str
    draining: bool
    epoch: int = 0


class PoolLeftOut(Event, frozen=True, kw_only=True, tag=True):
    """A pool was taken out of its host's configuration: whatever was said of it is over."""

    pool: str


class FileWritten(Event, frozen=True, kw_only=True, tag=True):
    """An operator wrote the configuration file; `mark` tells this text from all others."""

    mark: str
    good: bool


class InForce(Event, frozen=True, kw_only=True, tag=True):
    """An orchestrator decides by the configuration with the mark from here on.

    `started`: because it started with it.
    """

    mark: str
    started: bool


OperatorEvent = (
    ActSent
    | ActDone
    | ActRefused
    | ActUnknown
    | ModelSeen
    | PoolSeen
    | JournalModel
    | JournalDrain
    | PoolLeftOut
    | FileWritten
    | InForce
)
