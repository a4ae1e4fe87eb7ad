"""The shell's part around the core, as design §6 states it, over simulated hosts.

Records gather in batches, gated effects leave with their batch, a failed batch takes its accepts
back and is otherwise tried again, and a crash loses what is not durable.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import (
    ConfirmEnd,
    Effect,
    JobEnded,
    JobForgotten,
    ReplyAccepted,
    ReplyModel,
    ReplyPool,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptErrorKind,
    AttemptRefused,
    EndConfirmed,
    Event,
    Recovered,
)
from orchestrator_core.core.machine import Core
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
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.hosts import SimHost

ERRORS = (
    AttemptErrorKind.ENGINE_DIED,
    AttemptErrorKind.ENGINE_ERROR,
    AttemptErrorKind.CONTEXT_OVERFLOW,
    AttemptErrorKind.TIMEOUT,
    AttemptErrorKind.REPLAY_MISMATCH,
)

_OF_POOLS = ReplyPool | SendDrain | ReplyModel
_GATED = ReplyAccepted | SendStart | SendCancel | SendRelease | JobEnded | ConfirmEnd | _OF_POOLS


@dataclass
class Batch:
    """Records on their way to the journal, and what leaves with them."""

    records: list[Record] = field(default_factory=list)
    gated: list[Effect] = field(default_factory=list)


@dataclass
class Journal:
    """What is durable, in the order of writing."""

    accepts: list[AcceptRecord] = field(default_factory=list)
    dispatches: list[DispatchRecord] = field(default_factory=list)
    terminals: list[TerminalRecord] = field(default_factory=list)
    live: dict[str, None] = field(default_factory=dict)
    sessions: dict[tuple[str, str], SessionRecord] = field(default_factory=dict)
    drains: dict[str, PoolDrainRecord] = field(default_factory=dict)
    models: dict[str, CatalogRecord] = field(default_factory=dict)

    def write(self, records: list[Record]) -> None:
        """Makes a batch durable."""
        for record in records:
            if isinstance(record, AcceptRecord):
                self.accepts.append(record)
                self.live[record.spec.job_id] = None
            elif isinstance(record, DispatchRecord):
                self.dispatches.append(record)
            elif isinstance(record, TerminalRecord):
                self.terminals.append(record)
                self.live.pop(record.job_id, None)
            elif isinstance(record, SessionRecord):
                self.sessions[record.identity, record.session_id] = record
            elif isinstance(record, PoolDrainRecord):
                self.drains.pop(record.pool_id, None)
                if not record.over:
                    self.drains[record.pool_id] = record
            elif isinstance(record, CatalogRecord):
                self.models.pop(record.entry.card.model_id, None)
                if not record.over:
                    self.models[record.entry.card.model_id] = record
            else:
                self.sessions.pop((record.identity, record.session_id), None)

    def content(self) -> Recovered:
        """What a start reads back."""
        return Recovered(
            tuple(self.accepts),
            tuple(self.dispatches),
            tuple(self.terminals),
            tuple(self.sessions.values()),
            tuple(self.drains.values()),
            tuple(self.models.values()),
        )


Observer = Callable[[Any, Event, list[Effect]], None]


class Shell:
    """One core, its journal and its hosts.

    `before` and `observe` are called around every step, for checks.
    """

    def __init__(
        self, config: CoreConfig, hosts: dict[str, SimHost], observe: Observer | None = None
    ) -> None:
        self.config = self.first_config = config
        self.core = Core(config)
        self.now_ms = 1_000
        self.hosts = hosts
        self.pending = Batch()
        self.in_flight: Batch | None = None
        self.journal = Journal()
        self.inputs: list[tuple[Event, int]] = []
        self.outputs: list[list[Effect]] = []
        self.promised: dict[str, None] = {}
        self.told: dict[str, JobEnded] = {}
        self.before: Callable[[Any], None] = lambda _: None
        self.observe: Observer = observe or (lambda *_: None)

    def step(self, event: Event) -> list[Effect]:
        """Lets the core take one event, checks, and carries the effects out."""
        self.before(self)
        self.inputs.append((event, self.now_ms))
        effects = self.core.step(event, self.now_ms)
        self.outputs.append(effects)
        self.observe(self, event, effects)
        for effect in effects:
            self._carry_out(effect)
        return effects

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Record):
            self.pending.records.append(effect)
        elif isinstance(effect, SendVerdicts):
            self.hosts[effect.host_id].obey(effect)
        elif isinstance(effect, JobForgotten):
            assert effect.job_id not in self.journal.live, "a crash would bring it back"
        elif isinstance(effect, _GATED):
            self.pending.gated.append(effect)

    def _stops_unwritten(self, effect: SendCancel) -> bool:
        """A job that its client gave up need not run until a journal that is down takes its end."""
        host, job = self.hosts[effect.host_id], self.core.jobs.get(effect.job_id)
        sent = host.link_id is not None and host.find((effect.job_id, effect.attempt)) is not None
        return sent and job is not None and job.state is JobState.CANCELLED

    def _stop(self, effect: SendCancel) -> None:
        self._host(effect.host_id, lambda host: _cancel(host, effect))

    def _host(self, host_id: str, then: Callable[[SimHost], None]) -> None:
        host = self.hosts[host_id]
        if host.link_id is not None:
            then(host)

    def begin_commit(self) -> None:
        """A batch is on its way, if none is; what is decided meanwhile gathers in the next."""
        if self.in_flight is None:
            self.in_flight, self.pending = self.pending, Batch()

    def _landed(self) -> Batch:
        self.begin_commit()
        batch, self.in_flight = self.in_flight, None
        assert batch is not None
        return batch

    def commit(self) -> None:
        """The journal takes the batch; what waited for it leaves."""
        batch = self._landed()
        self.journal.write(batch.records)
        for effect in batch.gated:
            self._release(effect)

    def _release(self, effect: Effect) -> None:
        if isinstance(effect, ReplyAccepted):
            self.promised[effect.receipt.job_id] = None
        elif isinstance(effect, JobEnded):
            assert effect.job_id not in self.told, "a client hears one terminal event"
            self.told[effect.job_id] = effect
        elif isinstance(effect, SendStart):
            if self.core.holds_slot(effect.spec.job_id, effect.attempt):
                self._host(effect.host_id, lambda host: self._start(host, effect))
        elif isinstance(effect, SendCancel):
            self._stop(effect)
        elif isinstance(effect, SendRelease):
            self._host(effect.host_id, lambda host: host.release((effect.job_id, effect.attempt)))
        elif isinstance(effect, ConfirmEnd):
            self.step(EndConfirmed(effect.job_id))
        elif isinstance(effect, SendDrain):
            self._host(effect.host_id, lambda host: _drain(host, effect))

    def _start(self, host: SimHost, effect: SendStart) -> None:
        assert effect.spec.job_id not in self.told, "nothing starts after the terminal event"
        if not host.start(effect):
            self.step(AttemptRefused(effect.spec.job_id, effect.attempt, "no slot"))

    def fail_commit(self) -> None:
        """The journal refuses the batch: its accepts never happened, the rest is tried again."""
        batch, later = self._landed(), self.pending
        for effect in (*batch.gated, *later.gated):
            if isinstance(effect, SendCancel) and self._stops_unwritten(effect):
                self._stop(effect)
        accepts = [r for r in batch.records if isinstance(r, AcceptRecord)]
        gone = {r.spec.job_id for r in accepts}
        skip = gone | {r.displaced for r in accepts if r.displaced is not None}
        self.pending = Batch(
            [r for r in (*batch.records, *later.records) if _job_of(r) not in skip],
            [e for e in (*batch.gated, *later.gated) if _job_of(e) not in skip],
        )
        if accepts:
            self.step(AcceptsFailed(tuple(r.spec.job_id for r in accepts)))

    def crash(self) -> None:
        """The orchestrator dies and reads its journal; what was not durable is lost."""
        self.pending, self.in_flight = Batch(), None
        for host in self.hosts.values():
            host.link_id = None
        self.core, self.first_config = Core(self.config), self.config
        self.inputs.clear()
        self.outputs.clear()
        self.step(self.journal.content())


def _cancel(host: SimHost, effect: SendCancel) -> None:
    attempt = host.find((effect.job_id, effect.attempt))
    if attempt is not None:
        attempt.cancelled = True


def _drain(host: SimHost, effect: SendDrain) -> None:
    if effect.pool_id in host.pools:
        host.pools[effect.pool_id].drained = effect.left_ms is not None


def _job_of(effect: Effect) -> str:
    if isinstance(effect, AcceptRecord | SendStart):
        return effect.spec.job_id
    if isinstance(effect, ReplyAccepted):
        return effect.receipt.job_id
    no_job = SessionRecord | SessionForgotten | PoolDrainRecord | CatalogRecord | _OF_POOLS
    if isinstance(effect, no_job):
        return ""
    assert isinstance(effect, DispatchRecord | TerminalRecord | _GATED)
    return effect.job_id
