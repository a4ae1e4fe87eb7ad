"""A seeded random world around the core: clients, hosts, a journal whose commits may fail, crashes.

It plays the shell's part as design §6 states it: records gather in batches, gated effects leave
with their batch, a failed batch takes its accepts back and is otherwise tried again. Everything
random comes from one `random.Random`, so a seed is a test case.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import (
    AcceptRecord,
    DispatchRecord,
    Effect,
    JobEnded,
    Record,
    ReplyAccepted,
    SendCancel,
    SendRelease,
    SendStart,
    SendVerdicts,
    TerminalRecord,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    EnqueueRequested,
    Event,
    HostLost,
    HostRegistered,
    OutputProgressed,
    Recovered,
    SnapshotsReported,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.job import Failover, JobSpec
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.pool import PoolSnapshot, PoolState
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.hosts import SimAttempt, SimHost, SimPool

ERRORS = (
    AttemptErrorKind.ENGINE_DIED,
    AttemptErrorKind.ENGINE_ERROR,
    AttemptErrorKind.CONTEXT_OVERFLOW,
    AttemptErrorKind.TIMEOUT,
    AttemptErrorKind.REPLAY_MISMATCH,
)


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

    def write(self, records: list[Record]) -> None:
        """Makes a batch durable."""
        for record in records:
            if isinstance(record, AcceptRecord):
                self.accepts.append(record)
            elif isinstance(record, DispatchRecord):
                self.dispatches.append(record)
            else:
                self.terminals.append(record)

    def content(self) -> Recovered:
        """What a start reads back."""
        return Recovered(tuple(self.accepts), tuple(self.dispatches), tuple(self.terminals))


def fleet(rng: random.Random, *, memory: bool) -> dict[str, SimHost]:
    """Two hosts, four pools, two models, two engine versions."""
    hosts: dict[str, SimHost] = {}
    for name, pools in (("h1", ("p1", "p2")), ("h2", ("p3", "p4"))):
        hosts[name] = SimHost(
            name,
            {
                pool_id: SimPool(
                    pool_id,
                    name,
                    model_id="n" if pool_id == "p4" else "m",
                    slots=rng.randint(1, 3),
                    kv_total_bytes=rng.choice((8, 12)) if memory else None,
                    engine_version=rng.choice(("1", "2")),
                )
                for pool_id in pools
            },
        )
    return hosts


class World:
    """One core and everything around it. `observe` is called after every step."""

    def __init__(
        self,
        seed: int,
        config: CoreConfig,
        *,
        memory: bool = True,
        faults: bool = True,
        observe: Callable[["World", Event, list[Effect]], None] = lambda *_: None,
        before: Callable[["World"], None] = lambda _: None,
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
        self.config = config
        self.core = Core(config)
        self.memory = memory
        self.faults = faults
        self.now_ms = 1_000
        self.hosts = fleet(self.rng, memory=memory)
        self.pending = Batch()
        self.journal = Journal()
        self.inputs: list[tuple[Event, int]] = []
        self.outputs: list[list[Effect]] = []
        self.promised: dict[str, None] = {}
        self.told: dict[str, JobEnded] = {}
        self.old_snapshots: list[PoolSnapshot] = []
        self._observe = observe
        self._before = before
        self._specs: list[JobSpec] = []
        self._links = 0

    # --- the shell

    def step(self, event: Event) -> list[Effect]:
        """Lets the core take one event, checks, and carries the effects out."""
        self._before(self)
        self.inputs.append((event, self.now_ms))
        effects = self.core.step(event, self.now_ms)
        self.outputs.append(effects)
        self._observe(self, event, effects)
        for effect in effects:
            self._carry_out(effect)
        return effects

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, AcceptRecord | DispatchRecord | TerminalRecord):
            self.pending.records.append(effect)
        elif isinstance(effect, SendVerdicts):
            self.hosts[effect.host_id].obey(effect)
        elif isinstance(effect, SendRelease):
            self._host(effect.host_id, lambda host: host.release((effect.job_id, effect.attempt)))
        elif isinstance(effect, ReplyAccepted | SendStart | SendCancel | JobEnded):
            self.pending.gated.append(effect)

    def _host(self, host_id: str, then: Callable[[SimHost], None]) -> None:
        host = self.hosts[host_id]
        if host.link_id is not None:
            then(host)

    def commit(self) -> None:
        """The journal takes the batch; what waited for it leaves."""
        batch, self.pending = self.pending, Batch()
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
            self._host(effect.host_id, lambda host: _cancel(host, effect))

    def _start(self, host: SimHost, effect: SendStart) -> None:
        assert effect.spec.job_id not in self.told, "nothing starts after the terminal event"
        if not host.start(effect):
            self.step(AttemptRefused(effect.spec.job_id, effect.attempt, "no slot"))

    def fail_commit(self) -> None:
        """The journal refuses the batch: its accepts never happened, the rest is tried again."""
        batch, self.pending = self.pending, Batch()
        accepts = [r for r in batch.records if isinstance(r, AcceptRecord)]
        gone = {r.spec.job_id for r in accepts}
        skip = gone | {r.displaced for r in accepts if r.displaced is not None}
        self.pending.records = [r for r in batch.records if _job_of(r) not in skip]
        self.pending.gated = [e for e in batch.gated if _job_of(e) not in skip]
        if accepts:
            self.step(AcceptsFailed(tuple(r.spec.job_id for r in accepts)))

    def crash(self) -> None:
        """The orchestrator dies and reads its journal; what was not durable is lost."""
        self.pending = Batch()
        for host in self.hosts.values():
            host.link_id = None
        self.core = Core(self.config)
        self.inputs.clear()
        self.outputs.clear()
        self.step(self.journal.content())

    # --- what happens

    def run(self, steps: int) -> None:
        """Plays `steps` random moves."""
        for name in self.hosts:
            self.register(name)
        calm = (
            (self.enqueue, 30),
            (self.advance, 22),
            (self.begin_attempt, 24),
            (self.end_attempt, 26),
            (self.report, 14),
            (self.commit, 24),
            (self.cancel, 4),
            (self.progress, 6),
        )
        rough = (
            (self.fail_commit, 3),
            (self.repeat, 3),
            (self.audience, 3),
            (self.lose_or_register, 6),
            (self.reboot, 3),
            (self.old_frame, 3),
            (self.change_state, 3),
            (self.crash, 1),
        )
        moves = calm + (rough if self.faults else ())
        names, weights = [m for m, _ in moves], [w for _, w in moves]
        for _ in range(steps):
            self.rng.choices(names, weights)[0]()

    def enqueue(self) -> None:
        """A client sends a job."""
        rng = self.rng
        number = len(self._specs)
        new = spec(
            f"j{number}",
            batch=rng.random() < 0.4,
            model=rng.choice(("m", "m", "n")),
            request_id=f"r{number}" if rng.random() < 0.3 else "",
            est_kv_bytes=rng.choice((None, 1, 4, 7, 9)) if self.memory else None,
            expected_tokens=rng.randint(1, 50),
            failover=rng.choice(tuple(Failover)),
            cancel_on_disconnect=self.faults and rng.random() < 0.2,
            deadline_ms=self.now_ms + rng.randint(1, 4_000) if rng.random() < 0.15 else None,
            queue_timeout_ms=rng.randint(1, 4_000) if rng.random() < 0.15 else None,
        )
        self._specs.append(new)
        self.step(EnqueueRequested(new, number))

    def repeat(self) -> None:
        """A client repeats a request, sometimes with another body."""
        if self._specs:
            again = self.rng.choice(self._specs)
            if self.rng.random() < 0.3:
                again = replace(again, digest="another body")
            if again.job_id in self.core.jobs:
                self.step(EnqueueRequested(again, -1))

    def cancel(self) -> None:
        """A client cancels any job it ever sent."""
        if self._specs:
            self.step(CancelRequested(self.rng.choice(self._specs).job_id, -1))

    def audience(self) -> None:
        """Subscribers come and go."""
        if self.core.jobs:
            job_id = self.rng.choice(list(self.core.jobs))
            self.step(SubscribersChanged(job_id, self.rng.randint(0, 1)))

    def advance(self, most_ms: int | None = None) -> None:
        """Time passes, now and then backwards or up to the next deadline exactly."""
        due_ms = self.core.next_deadline_ms()
        if due_ms is not None and self.rng.random() < 0.2:
            self.now_ms = max(self.now_ms, due_ms)
        else:
            self.now_ms += self.rng.randint(-2, most_ms or self.rng.choice((5, 50, 600)))
        self.step(Tick())

    def register(self, name: str) -> None:
        """A host opens a link, whether or not an older one is known to be gone."""
        host = self.hosts[name]
        self._links += 1
        host.link_id, host.frames = self._links, 0
        self.step(HostRegistered(name, self._links, host.snapshots(), host.held()))
        for pool in host.pools.values():
            for attempt in [a for a in pool.attempts.values() if a.ended]:
                self._tell_end(host, attempt)

    def lose(self, name: str) -> None:
        """A link breaks."""
        host = self.hosts[name]
        if host.link_id is not None:
            link_id, host.link_id = host.link_id, None
            self.step(HostLost(name, link_id))

    def lose_or_register(self) -> None:
        """A host goes or comes."""
        name = self.rng.choice(list(self.hosts))
        if self.hosts[name].link_id is None or self.rng.random() < 0.2:
            self.register(name)
        else:
            self.lose(name)

    def report(self) -> None:
        """A host reports; sometimes an old report arrives once more."""
        host = self.rng.choice(list(self.hosts.values()))
        if host.link_id is None:
            return
        fresh = host.snapshots()
        if self.faults and self.old_snapshots and self.rng.random() < 0.2:
            late = self.rng.choice(self.old_snapshots)
            self.step(SnapshotsReported(late.host_id, (late,), self.now_ms - 50))
        self.old_snapshots = [*self.old_snapshots[-6:], *fresh]
        self.step(SnapshotsReported(host.host_id, fresh, self.now_ms))

    def change_state(self) -> None:
        """A pool drains or recovers."""
        pool = self._any_pool()
        pool.state = self.rng.choice((PoolState.READY, PoolState.READY, PoolState.DRAINING))
        self.report()

    def reboot(self) -> None:
        """An engine dies; its host says so, or only shows the new incarnation."""
        pool = self._any_pool()
        host = self.hosts[pool.host_id]
        for attempt in host.reboot(pool.pool_id):
            if host.link_id is not None and self.rng.random() < 0.7:
                error = AttemptError(AttemptErrorKind.ENGINE_DIED, "died")
                self.step(AttemptEnded(*attempt.key, host.frame(), error=error))
        if host.link_id is not None:
            self.step(SnapshotsReported(host.host_id, host.snapshots(), self.now_ms))

    def begin_attempt(self) -> None:
        """An engine takes an attempt up."""
        attempt = self._some_attempt(lambda a: not a.started and not a.ended)
        if attempt is not None:
            attempt.started = True
            self.step(AttemptStarted(*attempt.key))

    def progress(self) -> None:
        """An engine has produced output."""
        attempt = self._some_attempt(lambda a: a.started and not a.ended)
        if attempt is not None:
            self.step(OutputProgressed(*attempt.key, pieces=1))

    def end_attempt(self) -> None:
        """An attempt ends: cancelled ones first, else well, else with an error."""
        attempt = self._some_attempt(lambda a: not a.ended)
        if attempt is None or (not attempt.started and self.rng.random() < 0.6):
            return
        host = self._host_of(attempt)
        attempt.ended = True
        self._tell_end(host, attempt)

    def _tell_end(self, host: SimHost, attempt: SimAttempt) -> None:
        frame_seq = host.frame()
        if attempt.cancelled:
            self.step(AttemptEnded(*attempt.key, frame_seq, finish=Finish.CANCELLED))
        elif self.faults and self.rng.random() < 0.2:
            error = AttemptError(self.rng.choice(ERRORS), "broke")
            self.step(AttemptEnded(*attempt.key, frame_seq, error=error))
        else:
            usage = Usage(tokens_in=3, tokens_out=self.rng.randint(1, 9))
            self.step(AttemptEnded(*attempt.key, frame_seq, finish=Finish.EOS, usage=usage))

    def old_frame(self) -> None:
        """A frame of an attempt that does not count, or never existed, arrives."""
        job_id = self.rng.choice(self._specs).job_id if self._specs else "nobody"
        job = self.core.jobs.get(job_id)
        number = self.rng.randint(0, job.attempts_made - 1) if job and job.attempts_made else 0
        if self.core.holds_slot(job_id, number):
            return
        for event in (
            AttemptStarted(job_id, number),
            OutputProgressed(job_id, number, pieces=1),
            AttemptRefused(job_id, number, "late"),
            AttemptEnded(job_id, number, 1, finish=Finish.EOS),
        ):
            assert self.step(event) == [], "frames of attempts that do not count change nothing"

    def settle(self) -> None:
        """Everything is repaired and ends; then retention passes."""
        self.faults = False
        for host in self.hosts.values():
            for pool in host.pools.values():
                pool.state = PoolState.READY
        for _ in range(400):
            self.commit()
            for name, host in self.hosts.items():
                if host.link_id is None:
                    self.register(name)
                else:
                    self.step(SnapshotsReported(name, host.snapshots(), self.now_ms))
            self.now_ms += 100
            self.step(Tick())
            while (attempt := self._some_attempt(lambda a: not a.ended)) is not None:
                attempt.ended = attempt.cancelled = True
                key, frame_seq = attempt.key, self._host_of(attempt).frame()
                self.step(AttemptEnded(*key, frame_seq, finish=Finish.EOS))
            if not self.core.live_attempts and not self.core.queue_depth():
                break
        self.commit()
        self.now_ms += 2 * self.config.retention_ms + 1
        self.step(Tick())
        self.commit()

    # --- helpers

    def _any_pool(self) -> SimPool:
        return self.rng.choice([p for host in self.hosts.values() for p in host.pools.values()])

    def _host_of(self, attempt: SimAttempt) -> SimHost:
        return next(h for h in self.hosts.values() if h.find(attempt.key) is attempt)

    def _some_attempt(self, wanted: Callable[[SimAttempt], bool]) -> SimAttempt | None:
        found = [
            attempt
            for host in self.hosts.values()
            if host.link_id is not None
            for pool in host.pools.values()
            for attempt in pool.attempts.values()
            if wanted(attempt)
        ]
        return self.rng.choice(found) if found else None


def _cancel(host: SimHost, effect: SendCancel) -> None:
    attempt = host.find((effect.job_id, effect.attempt))
    if attempt is not None:
        attempt.cancelled = True


def _job_of(effect: Effect) -> str:
    if isinstance(effect, AcceptRecord | SendStart):
        return effect.spec.job_id
    if isinstance(effect, ReplyAccepted):
        return effect.receipt.job_id
    assert isinstance(effect, DispatchRecord | TerminalRecord | SendCancel | JobEnded)
    return effect.job_id
