"""What the core has written to the journal: it says what happened, and a restart reads it.

Records are effects, which a runtime has written before the gated ones leave (`effects`).
"""

import enum
from dataclasses import dataclass

from orchestrator_core.core.catalog_model import CatalogEntry
from orchestrator_core.core.decision import Decision
from orchestrator_core.core.outcome import Outcome, Usage
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.session import Hold, Spent
from orchestrator_core.core.spec import Budgets, JobSpec, StartMode
from orchestrator_core.core.states import JobState


@plain_init
@dataclass(frozen=True, slots=True)
class AcceptRecord:
    """A job was accepted; `displaced` names the job that was dropped for it in the same commit."""

    spec: JobSpec
    seq: int
    accepted_ms: int
    position: int
    predicted_start_ms: int | None
    predicted_end_ms: int | None
    displaced: str | None = None
    plain_start_ms: int | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """An attempt was bound to one incarnation of a pool.

    `failures` are the tries that were lost before, `tried` the replicas that proved unfit for the
    job by then, and `refusals` counts pools that did not start it. `mode` is None in a record of a
    version that did not write it. `follows` is the attempt whose host has the text that a
    continuation follows, 0 where there is none or where an older version wrote it. `boot_id` names
    the run of the pool manager that was to have the attempt, empty in such a record too.
    """

    job_id: str
    attempt: int
    pool_id: str
    replica_id: str
    host_id: str
    sent_ms: int
    decision: Decision
    replica_set: tuple[str, str, str, str]
    mode: StartMode | None = None
    failures: int = 0
    tried: tuple[str, ...] = ()
    refusals: int = 0
    follows: int = 0
    boot_id: str = ""


@plain_init
@dataclass(frozen=True, slots=True)
class TerminalRecord:
    """A job reached its terminal state."""

    job_id: str
    state: JobState
    outcome: Outcome
    usage: Usage
    ended_ms: int


@plain_init
@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is now; replaces what was written of it before. See `session.Session`."""

    identity: str
    session_id: str
    opened_ms: int
    used_ms: int
    budgets: Budgets
    turns: int
    spent: Spent
    held: tuple[tuple[str, Hold], ...]
    pool_id: str = ""
    replica_id: str = ""
    kv_tokens: int | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class SessionForgotten:
    """A session is over: nothing is kept of it."""

    identity: str
    session_id: str


class CatalogChange(enum.Enum):
    """What was done to a model of the catalog."""

    REGISTERED = "registered"
    UPDATED = "updated"
    RETIRED = "retired"
    ACTIVATED = "activated"
    DELETED = "deleted"


@plain_init
@dataclass(frozen=True, slots=True)
class PoolDrainRecord:
    """An operator drains a pool, until `until_ms` at most; `over`: nothing is kept of it any more.

    Replaces what was written of that pool before.
    """

    pool_id: str
    since_ms: int
    until_ms: int
    over: bool = False


@plain_init
@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """A model of the catalog as it is now; `over`: nothing is kept of it any more.

    Replaces what was written of that model before. `change` says what was done.
    """

    entry: CatalogEntry
    change: CatalogChange
    over: bool = False


JobRecord = AcceptRecord | DispatchRecord | TerminalRecord
Record = JobRecord | SessionRecord | SessionForgotten | PoolDrainRecord | CatalogRecord
