"""Jobs and attempts: where what was asked for stands."""

from dataclasses import dataclass, field, replace

from orchestrator_core.core.decision import DECISIONS_KEPT, Decision
from orchestrator_core.core.outcome import NO_USAGE, Outcome, Usage
from orchestrator_core.core.spec import NO_SHAPE, Failover, JobSpec, Shape, StartMode
from orchestrator_core.core.states import TERMINAL, AttemptState, JobState

# A time teaches nothing of which pauses of the event loop were more than one part in so many.
_PAUSED_SHARE = 10


def disturbed(paused_ms: int, took_ms: int) -> bool:
    """True where pauses were so much of a time that it teaches nothing. LO-206."""
    return paused_ms * _PAUSED_SHARE > took_ms


@dataclass(slots=True)
class Attempt:
    """One try of a job on one incarnation of a pool. Holds a slot there until ENDED.

    `first_output_area` is the pool's `busy_area` at the first output. `mode` says whether it
    generates again what an earlier one delivered, or goes on from there; `kv_warmth` that its pool
    found keys and values of the session. A `recovered` attempt was
    read from the journal: it is `detached` until its host is back, and its times teach nothing. One
    that is `ended_at_host` holds no slot any more: only its end is yet to be read. `cancels` counts
    how often its host was told to stop it. `boot_id` names the run of the pool manager that was to
    have it, empty where that is not known. `held_bytes` of output its host had when it last
    registered with it as the proof of what was delivered, None while it has not. For `paused_ms` of
    its time nobody heard of it: the event loop stood still, or its host was cut off.
    """

    job_id: str
    number: int
    pool_id: str
    replica_id: str
    host_id: str
    sent_ms: int
    est_kv_bytes: int = 0
    uncached_tokens: float = 0.0
    predicted_end_ms: int = 0
    state: AttemptState = AttemptState.SENT
    started_ms: int | None = None
    first_output_ms: int | None = None
    first_output_area: int = 0
    last_progress_ms: int = 0
    detached: bool = False
    recovered: bool = False
    ended_at_host: bool = False
    cancels: int = 0
    boot_id: str = ""
    held_bytes: int | None = None
    mode: StartMode = StartMode.FRESH
    kv_warmth: bool = False
    paused_ms: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """(job_id, number), unique for ever."""
        return self.job_id, self.number


@dataclass(slots=True)
class Job:
    """A live or recently ended job.

    `seq` is the arrival number, kept through retries. `delivered` is True when output of an earlier
    attempt may have reached a client. `failures` counts lost attempts; refused ones are not tries.
    `mixed` says that the output came from more than one replica set: token ids then mean nothing.
    `plain_start_ms` is the forecast of its start before corrections, None for a job that was placed
    in the step that accepted it; `shape` is its expected size when it began to wait.
    `declined_offers` counts the slots that it let pass since `declined_since_ms`. A `recovered`
    one was read from the journal: what became of it teaches nothing about what it was told.
    `tokens_charged` is what its client's throttle holds for it, `tokens_served` what fairness has
    counted for it; None where nothing was charged. Once its client has `acknowledged` all of it,
    nobody will ask for its output.
    `pieces` of output were relayed, as of the last progress. `unreleased` is an attempt that is
    over and whose host still proves what was delivered, until a later one has started.
    `decisions` are the latest `DECISIONS_KEPT`: a job may be refused any number of times. For
    `paused_ms` of its time the event loop stood still.
    """

    spec: JobSpec
    seq: int
    accepted_ms: int
    state: JobState = JobState.QUEUED
    position_at_admission: int = 1
    predicted_start_ms: int | None = None
    predicted_end_ms: int | None = None
    attempts_made: int = 0
    failures: int = 0
    attempt: Attempt | None = None
    delivered: bool = False
    tried_replicas: set[str] = field(default_factory=set)
    decisions: list[Decision] = field(default_factory=list)
    first_dispatch_ms: int | None = None
    started_ms: int | None = None
    first_output_ms: int | None = None
    ended_ms: int | None = None
    outcome: Outcome | None = None
    usage: Usage = NO_USAGE
    subscribers: int = 0
    replica_set: tuple[str, str, str, str] | None = None
    mixed: bool = False
    unreleased: Attempt | None = None
    refusals: int = 0
    plain_start_ms: int | None = None
    shape: Shape = NO_SHAPE
    declined_offers: int = 0
    declined_since_ms: int | None = None
    tokens_served: float = 0.0
    tokens_charged: int | None = None
    recovered: bool = False
    pieces: int = 0
    paused_ms: int = 0
    acknowledged: bool = False

    @property
    def job_id(self) -> str:
        """Id of the job."""
        return self.spec.job_id

    @property
    def next_mode(self) -> StartMode:
        """How the next attempt begins."""
        if not self.delivered or self.spec.failover is Failover.FAIL:
            return StartMode.FRESH
        return StartMode[self.spec.failover.name]

    @property
    def bound_to(self) -> tuple[str, str, str, str] | None:
        """Replica set to which the next attempt must keep; None: any that is feasible. LO-304.

        A verified replay must give the same bytes. A continuation is announced as what it is: the
        client has agreed to text that another engine goes on with.
        """
        return self.replica_set if self.next_mode is StartMode.VERIFIED_REPLAY else None

    def note_decision(self, decision: Decision) -> None:
        """Keeps a placement, the latest last."""
        self.decisions.append(decision)
        del self.decisions[:-DECISIONS_KEPT]

    def drop_payload(self) -> None:
        """Forgets the prompt."""
        if self.spec.payload:
            self.spec = replace(self.spec, payload=b"")

    @property
    def live(self) -> bool:
        """True until a terminal state is reached."""
        return self.state not in TERMINAL
