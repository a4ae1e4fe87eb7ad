"""A seeded random world: clients, hosts, failed commits, crashes.

Everything random comes from one `random.Random`, so a seed is a test case.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from orchestrator_core.core.catalog_model import ModelCard, ModelState
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    ConfigChanged,
    EnqueueRequested,
    Event,
    HostLost,
    HostRegistered,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    OutputAcknowledged,
    OutputProgressed,
    PoolDrainRequested,
    SnapshotsReported,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState
from orchestrator_core.core.spec import Failover, JobSpec
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.hosts import SimAttempt, SimHost, SimPool, fleet
from tests.unit.orchestrator_core.core.shell import Observer, Shell

ERRORS = (
    AttemptErrorKind.ENGINE_DIED,
    AttemptErrorKind.ENGINE_ERROR,
    AttemptErrorKind.CONTEXT_OVERFLOW,
    AttemptErrorKind.TIMEOUT,
    AttemptErrorKind.REPLAY_MISMATCH,
)

# Attempts that a host may hold: few enough for ended ones to be released early.
HELD_MAX = 12


class World(Shell):
    """Random moves.

    `memory` bounds keys and values at pools, `faults` lets things break, `sessions` lets jobs
    belong to conversations, `drains` an operator drain pools, `catalog` another keep a catalog;
    `other_config` draws the settings to which an operator changes meanwhile.
    """

    def __init__(
        self,
        seed: int,
        config: CoreConfig,
        *,
        memory: bool = True,
        faults: bool = True,
        sessions: bool = True,
        observe: Observer | None = None,
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
        super().__init__(config, fleet(self.rng, memory=memory), observe)
        self.memory = memory
        self.faults = faults
        self.sessions = sessions
        self.drains = False
        self.other_config: Callable[[random.Random], CoreConfig] | None = None
        self.catalog = False
        self._old_snapshots: list[PoolSnapshot] = []
        self._specs: list[JobSpec] = []
        self._links = 0

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
            (self.begin_commit, 12),
            (self.commit, 18),
            (self.cancel, 4),
            (self.progress, 6),
        )
        rough = (
            (self.fail_commit, 3),
            (self.repeat, 3),
            (self.audience, 3),
            (self.lose_or_register, 6),
            (self.reboot, 3),
            (self.restart_host, 1),
            (self.old_frame, 3),
            (self.change_state, 3),
            (self.crash, 1),
        )
        moves = calm + (rough if self.faults else ())
        moves += ((self.drain_or_not, 4),) if self.drains else ()
        moves += ((self.reconfigure, 3),) if self.other_config else ()
        moves += ((self.change_catalog, 6),) if self.catalog else ()
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
            model=rng.choice(("m", "m", "n", "alias") if self.catalog else ("m", "m", "n")),
            identity=("alice", "bob")[number % 2],
            request_id=f"r{number}" if rng.random() < 0.3 else "",
            est_kv_bytes=rng.choice((None, 1, 4, 7, 9)) if self.memory else None,
            expected_tokens=rng.randint(1, 50),
            failover=rng.choice(tuple(Failover)),
            cancel_on_disconnect=self.faults and rng.random() < 0.2,
            deadline_ms=self.now_ms + rng.randint(1, 4_000) if rng.random() < 0.15 else None,
            queue_timeout_ms=rng.randint(1, 4_000) if rng.random() < 0.15 else None,
        )
        if self.sessions:
            new = replace(
                new,
                session_id=rng.choice(("", "", "s1", "s2", "s3")),
                kv_reuse=rng.random() < 0.5,
                max_tokens=rng.choice((None, 10, 20)),
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
        """Subscribers come and go, or have all that they want."""
        if self.core.jobs:
            job_id = self.rng.choice(list(self.core.jobs))
            self.step(SubscribersChanged(job_id, self.rng.randint(0, 1)))
            if self.rng.random() < 0.3:
                self.step(OutputAcknowledged(job_id))

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
        held = host.held()
        self.step(HostRegistered(name, self._links, host.snapshots(), held, HELD_MAX, host.boot_id))
        for pool in host.pools.values():
            for attempt in [a for a in pool.attempts.values() if a.ended]:
                # Behind output that is not read yet an end waits.
                attempt.told = False
                if self.rng.random() < 0.7:
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
        if self.faults and self._old_snapshots and self.rng.random() < 0.2:
            late = self.rng.choice(self._old_snapshots)
            self.step(SnapshotsReported(late.host_id, (late,), self.now_ms - 50))
        self._old_snapshots = [*self._old_snapshots[-6:], *fresh]
        self.step(SnapshotsReported(host.host_id, fresh, self.now_ms))

    def change_state(self) -> None:
        """A pool drains or recovers."""
        pool = self._any_pool()
        pool.state = self.rng.choice((PoolState.READY, PoolState.READY, PoolState.DRAINING))
        self.report()

    def drain_or_not(self) -> None:
        """An operator drains a pool, or lets it take work again."""
        draining = self.rng.random() < 0.35
        self.step(PoolDrainRequested(self._any_pool().pool_id, draining, 1_000, 0))

    def reconfigure(self) -> None:
        """An operator changes settings; the file says the same from then on."""
        assert self.other_config is not None
        self.config = self.other_config(self.rng)
        self.step(ConfigChanged(self.config))

    def change_catalog(self) -> None:
        """An operator registers, changes, retires, activates or deletes a model."""
        rng, model_id = self.rng, self.rng.choice(("m", "n"))
        entry = self.core.catalog.entries.get(model_id)
        chosen, number = rng.random(), len(self.inputs)
        event: Event
        if entry is None or chosen < 0.4:
            card = ModelCard(
                model_id,
                aliases=("alias",) if rng.random() < 0.5 else (),
                digest=rng.choice(("", "", "sha256:other")),
                expected_tokens=rng.choice((None, 20)),
                bytes_per_token=rng.choice((None, 3.5)),
            )
            event = ModelPut(card, entry.revision if entry else 0, number)
        elif chosen < 0.7:
            event = ModelStateSet(
                model_id, ModelState.RETIRED, 0, rng.choice((0, 5, 300)), "", number
            )
        elif chosen < 0.9:
            event = ModelStateSet(model_id, ModelState.ACTIVE, 0, 0, "", number)
        else:
            event = ModelDeleted(model_id, 0, rng.random() < 0.5, number)
        self.step(event)

    def reboot(self) -> None:
        """An engine is started anew; what ended with it is told before the report, or later."""
        pool = self._any_pool()
        host = self.hosts[pool.host_id]
        for attempt in host.reboot(pool.pool_id):
            # One that ended well did so before, and a report may overtake that too.
            self._end(attempt, died=self.rng.random() < 0.8)
            if host.link_id is not None and self.rng.random() < 0.6:
                self._tell_end(host, attempt)
        if host.link_id is not None:
            self.step(SnapshotsReported(host.host_id, host.snapshots(), self.now_ms))

    def restart_host(self) -> None:
        """A pool manager dies with its engines and comes back, maybe without one of its pools."""
        host = self.rng.choice(list(self.hosts.values()))
        self.lose(host.host_id)
        pool_id = self.rng.choice([*host.pools, *host.left_out])
        host.restart(pool_id if self.rng.random() < 0.3 else None)
        self.register(host.host_id)

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
            attempt.text_bytes += 1
            self.step(OutputProgressed(*attempt.key, pieces=1))

    def end_attempt(self) -> None:
        """An attempt ends, or the end of one that did is told."""
        attempt = self._some_attempt(lambda a: not a.told)
        if attempt is None or (not (attempt.started or attempt.ended) and self.rng.random() < 0.6):
            return
        if not attempt.ended:
            self._end(attempt)
        if self.rng.random() < 0.9:
            self._tell_end(self._host_of(attempt), attempt)

    def _end(self, attempt: SimAttempt, *, died: bool = False) -> None:
        """An engine works on an attempt no more; how that came is the same each time it is told."""
        end = AttemptEnded(*attempt.key, 0, text_bytes=attempt.text_bytes)
        if died:
            error = AttemptError(AttemptErrorKind.ENGINE_DIED, "died")
            attempt.end = replace(end, error=error)
        elif attempt.cancelled:
            attempt.end = replace(end, finish=Finish.CANCELLED)
        elif self.faults and self.rng.random() < 0.2:
            error = AttemptError(self.rng.choice(ERRORS), "broke")
            attempt.end = replace(end, error=error)
        else:
            usage = Usage(tokens_in=3, tokens_out=self.rng.randint(1, 9))
            attempt.end = replace(end, finish=Finish.EOS, usage=usage)

    def _tell_end(self, host: SimHost, attempt: SimAttempt) -> None:
        assert attempt.end is not None, "it has ended"
        attempt.told = True
        self.step(replace(attempt.end, frame_seq=host.frame()))

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
        self._mend()
        for _ in range(400):
            self.commit()
            self.commit()
            for name, host in self.hosts.items():
                if host.link_id is None:
                    self.register(name)
                else:
                    self.step(SnapshotsReported(name, host.snapshots(), self.now_ms))
            self.now_ms += 100
            self.step(Tick())
            while (attempt := self._some_attempt(lambda a: not a.told)) is not None:
                if not attempt.ended:
                    self._end(attempt)
                self._tell_end(self._host_of(attempt), attempt)
            if not self.core.live_attempts and not self.core.queue_depth():
                break
        self.commit()
        self.commit()
        self.now_ms += 2 * self.config.retention_ms + 1
        self.step(Tick())
        self.commit()
        self.commit()

    # --- helpers

    def _mend(self) -> None:
        """Every model, host and pool is as at first."""
        for model_id in list(self.core.catalog.entries):
            self.step(ModelDeleted(model_id, 0, True, -2))
        for host in self.hosts.values():
            if host.left_out:
                self.lose(host.host_id)
                host.restart()
                self.register(host.host_id)
            for pool in host.pools.values():
                pool.state = PoolState.READY
                self.step(PoolDrainRequested(pool.pool_id, False, 0, 0))

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
