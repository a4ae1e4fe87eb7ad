"""What must hold after every step of the core, computed from scratch and the slow way."""

from collections import Counter
from dataclasses import dataclass, field

from orchestrator_core.core.effects import (
    ConfirmEnd,
    Effect,
    JobEnded,
    JobForgotten,
    JobStarted,
    ReplyPool,
    ReplyRefused,
    SendStart,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptRefused,
    ConfigChanged,
    EnqueueRequested,
    Event,
    HostRegistered,
    OutputProgressed,
    PoolDrainRequested,
    Recovered,
)
from orchestrator_core.core.records import AcceptRecord, DispatchRecord, PoolDrainRecord
from orchestrator_core.core.spec import Priority, StartMode
from orchestrator_core.core.state import State
from orchestrator_core.core.states import AttemptState, JobState
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.hosts import Key
from tests.unit.orchestrator_core.core.rules import (
    assert_goes_on,
    assert_within_bounds,
    could_ever_run,
    declines,
    fits_now,
    is_open,
    same_client,
    waiting_in,
)
from tests.unit.orchestrator_core.core.shell import Shell


@dataclass
class Checks:
    """Follows one world and asserts after each step. One instance per world."""

    attempts: Counter[str] = field(default_factory=Counter)
    victims: dict[str, str] = field(default_factory=dict)
    ended: dict[str, None] = field(default_factory=dict)
    leaving: dict[str, None] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    waiting_before: dict[str, int] = field(default_factory=dict)
    interactive_in_a_row: int = 0
    drained: dict[str, None] = field(default_factory=dict)
    closed_before: dict[str, None] = field(default_factory=dict)
    turns_max: int = 0
    hosts_before: dict[Key, str] = field(default_factory=dict)

    def before(self, world: Shell) -> None:
        """Notes who waits, to judge the step that comes."""
        queue = world.core._state.queue
        self.waiting_before = {job.job_id: job.seq for job in waiting_in(queue)}
        self.closed_before = world.core.catalog.closed.copy()
        attempts = world.core._state.attempts.values()
        self.hosts_before = {attempt.key: attempt.host_id for attempt in attempts}

    def after(self, world: Shell, event: Event, effects: list[Effect]) -> None:
        """Asserts everything."""
        state = world.core._state
        if isinstance(event, Recovered):
            self._restart(world, event)
        if isinstance(event, OutputProgressed) and world.core.holds_slot(
            event.job_id, event.attempt
        ):
            self.delivered.add(event.job_id)
        if isinstance(event, AcceptsFailed):
            self._taken_back(state, event)
        if isinstance(event, ConfigChanged):
            # Other turns begin here.
            self.interactive_in_a_row = 0
        # A session that was let in under another bound has had more turns than it would get now.
        self.turns_max = max(self.turns_max, state.config.session_turns_max)
        self._queue_is_exact(state, event)
        self._leaving(state, effects)
        self._jobs_are_somewhere(state)
        self._hosts_keep_what_they_may(state)
        self._attempts_end_by_their_hosts(state, event)
        self._pools_are_exact(state, world.core._last_ms)
        self._timers_are_bound(state, world)
        self._sessions_add_up(state)
        self._drained_pools_get_nothing(state, event, effects)
        self._closed_models_are_left_alone(state, effects, world.core._last_ms)
        self._effects_are_lawful(state, effects)
        self._order_of_arrival(state, effects)
        self._nobody_waits_in_vain(state, world.core._last_ms)
        self._batch_is_not_starved(state, effects)

    def _restart(self, world: Shell, event: Recovered) -> None:
        jobs = world.core.jobs
        for job_id in world.promised:
            known = job_id in jobs or job_id in world.told
            assert known, f"{job_id} was accepted and is gone"
        self.ended = {terminal.job_id: None for terminal in event.terminals}
        self.leaving.clear()
        self.attempts = Counter({j.job_id: j.attempts_made for j in jobs.values()})
        self.interactive_in_a_row = 0

    def _taken_back(self, state: State, event: AcceptsFailed) -> None:
        for job_id in reversed(event.job_ids):
            assert job_id not in state.jobs
            self.ended.pop(job_id, None)
            self.attempts.pop(job_id, None)
            victim = self.victims.pop(job_id, None)
            if victim is not None and victim not in event.job_ids:
                self.ended.pop(victim, None)
                assert victim in state.jobs, "a victim comes back"
        gone = event.job_ids
        self.victims = {n: v for n, v in self.victims.items() if v not in gone}

    def _queue_is_exact(self, state: State, event: Event) -> None:
        """LO-101: depth equals the jobs really queued, capacity holds for those let in."""
        queue = state.queue
        queued = {j.job_id for j in state.jobs.values() if j.state is JobState.QUEUED}
        assert {j.job_id for j in waiting_in(queue)} == queued
        assert len(queue) == len(queued)
        owners = Counter(j.spec.identity for j in waiting_in(queue))
        assert owners == Counter(state.throttle._waiting), "throttles count who really waits"
        for priority in Priority:
            order = queue.snapshot(priority)
            assert queue.depth(priority) == len(order)
            assert sorted(order, key=lambda j: state.jobs[j].seq) == list(order)
        if isinstance(event, EnqueueRequested):
            # Only retries and victims that came back may lie beyond the bound.
            before = len(self.waiting_before)
            assert len(queue) <= max(before, state.config.queue_capacity)

    def _drained_pools_get_nothing(self, state: State, event: Event, effects: list[Effect]) -> None:
        """OC-CTRL-2002: from the operator's word on, until the next one; also after a crash."""
        if isinstance(event, Recovered):
            self.drained = {drain.pool_id: None for drain in event.drains}
        if isinstance(event, PoolDrainRequested) and any(isinstance(e, ReplyPool) for e in effects):
            self.drained.pop(event.pool_id, None)
            if event.draining:
                self.drained[event.pool_id] = None
        for effect in effects:
            if isinstance(effect, PoolDrainRecord) and effect.over:
                self.drained.pop(effect.pool_id, None)
            assert not (isinstance(effect, DispatchRecord) and effect.pool_id in self.drained)
        assert state.drains.keys() == self.drained.keys()
        assert all(pool.draining == (p in self.drained) for p, pool in state.pools.items())

    def _closed_models_are_left_alone(
        self, state: State, effects: list[Effect], now_ms: int
    ) -> None:
        """ORCH-3031: once the grace is over, pools of it take nothing and nothing waits for it.

        In the step in which it ends, what was due before it may still be placed.
        """
        due = {
            model_id: None
            for model_id, entry in state.catalog.entries.items()
            if entry.grace_until_ms is not None and entry.grace_until_ms <= now_ms
        }
        assert state.catalog.closed.keys() == due.keys()
        for pool in state.pools.values():
            assert pool.retired == (pool.snapshot.model_id in due)
        for effect in effects:
            if isinstance(effect, DispatchRecord):
                assert state.pools[effect.pool_id].snapshot.model_id not in self.closed_before
        assert not [job for job in waiting_in(state.queue) if job.spec.needs.model_id in due]

    def _hosts_keep_what_they_may(self, state: State) -> None:
        """Output of ended jobs leaves room for what runs; each is the last attempt of its job."""
        for host in state.hosts.values():
            assert host.kept_max is None or len(host.kept) <= host.kept_max
            for job_id, number in host.kept:
                job = state.jobs[job_id]
                assert not job.live
                assert job.attempts_made == number

    def _leaving(self, state: State, effects: list[Effect]) -> None:
        """Notes which jobs are forgotten as soon as that is safe."""
        self.leaving |= {e.job_id: None for e in effects if isinstance(e, ConfirmEnd)}
        for job_id in [j for j in self.leaving if j not in state.jobs or state.jobs[j].live]:
            del self.leaving[job_id]

    def _jobs_are_somewhere(self, state: State) -> None:
        """A live job waits or has one live attempt; every attempt is numbered by its job."""
        for job in state.jobs.values():
            attempt = job.attempt
            if job.state is JobState.QUEUED:
                assert attempt is None
            elif job.live:
                assert attempt is not None
                assert state.attempts.get(attempt.key) is attempt
                assert attempt.state is not AttemptState.CANCELLING
            else:
                assert job.outcome is not None
                kept = job.job_id in state.ended or job.job_id in state.ended_unrun
                # One that had to go while its pool had not confirmed the end is looked at again.
                again = state.timers.is_set(TimerKind.FORGET, job.job_id)
                assert kept or again or job.job_id in self.leaving
        for key, attempt in state.attempts.items():
            assert attempt.state is not AttemptState.ENDED
            assert key == attempt.key
            assert state.jobs[attempt.job_id].attempt is attempt
        kept_total = len(state.ended) + len(state.ended_unrun)
        assert kept_total <= state.config.finished_jobs_max

    def _pools_are_exact(self, state: State, now_ms: int) -> None:
        """LO-203, LO-204: the account of slots adds up and `available` is what it would be anew."""
        attached = {
            k: a for k, a in state.attempts.items() if not a.detached and not a.ended_at_host
        }
        for pool in state.pools.values():
            replica_id = pool.snapshot.replica_id
            assert set(pool.own) == {k for k, a in attached.items() if a.replica_id == replica_id}
            assert len(pool.own) <= pool.snapshot.slots_total
        anew = {p.snapshot.pool_id for p in state.pools.values() if is_open(state, p, now_ms)}
        assert set(state.available) == anew

    def _attempts_end_by_their_hosts(self, state: State, event: Event) -> None:
        """What becomes of an attempt is its host's word, but for one that is away too long. LO-305.

        Whatever a report shows, its end may be on its way.
        """
        if isinstance(event, Recovered | AcceptsFailed):
            return
        over = {key: host for key, host in self.hosts_before.items() if key not in state.attempts}
        if isinstance(event, AttemptEnded | AttemptRefused):
            over.pop((event.job_id, event.attempt), None)
        held = {(h.job_id, h.attempt) for h in getattr(event, "held", ())}
        for key, host_id in over.items():
            host = state.hosts.get(host_id)
            away = host is None or host.link_id is None
            dropped = isinstance(event, HostRegistered) and event.host_id == host_id
            assert away or (dropped and key not in held), f"{key} is over, by nobody's word"

    def _sessions_add_up(self, state: State) -> None:
        """Holds belong to jobs that may still take something; bounds and idleness are kept."""
        idle = set(state.sessions._idle)
        warm = [key for keys in state.sessions._warm.values() for key in keys]
        assert len(warm) == len(set(warm)), "a session is warm at one pool"
        for session in state.sessions:
            assert (session.key in idle) == (not session.held)
            assert (session.key in warm) == bool(session.pool_id)
            assert 0 <= session.turns <= self.turns_max
            for job_id in session.held:
                job = state.jobs[job_id]
                assert job.spec.session_id == session.session_id
                assert job.live or (job.attempt and job.attempt.key in state.attempts)

    def _timers_are_bound(self, state: State, world: Shell) -> None:
        """Every deadline lies ahead and belongs to something that exists."""
        due_ms = world.core.next_deadline_ms()
        assert due_ms is None or due_ms > world.core._last_ms
        owners = {
            TimerKind.REATTACH: {a.host_id for a in state.attempts.values()},
            TimerKind.CANCEL: {
                a.job_id for a in state.attempts.values() if a.state is AttemptState.CANCELLING
            },
            TimerKind.HOST: {h.host_id for h in state.hosts.values() if h.link_id is None},
            TimerKind.POOL_REOPENS: state.pools.keys(),
            TimerKind.POOL_STALE: state.pools.keys(),
            TimerKind.FORGET: {j.job_id for j in state.jobs.values() if not j.live},
            TimerKind.SESSION: {session.key for session in state.sessions},
            TimerKind.MODEL_GRACE: {
                model_id
                for model_id, entry in state.catalog.entries.items()
                if entry.grace_until_ms is not None and model_id not in state.catalog.closed
            },
            TimerKind.QUEUE_TIMEOUT: {j.job_id for j in waiting_in(state.queue)},
        }
        live = {j.job_id for j in state.jobs.values() if j.live}
        for kind, key in state.timers._due:
            assert kind is TimerKind.REATTACH or key in owners.get(kind, live)

    def _effects_are_lawful(self, state: State, effects: list[Effect]) -> None:
        """ORCH-3026: one terminal per job, nothing after it; attempts are numbered 1..n."""
        for effect in effects:
            if isinstance(effect, AcceptRecord) and effect.displaced is not None:
                self.victims[effect.spec.job_id] = effect.displaced
            elif isinstance(effect, JobEnded):
                assert effect.job_id not in self.ended
                self.ended[effect.job_id] = None
                assert (effect.outcome.finish is None) != (effect.outcome.error is None)
            elif isinstance(effect, DispatchRecord):
                self.attempts[effect.job_id] += 1
                assert effect.attempt == self.attempts[effect.job_id]
                assert effect.job_id not in self.ended
                assert_goes_on(state.jobs[effect.job_id], effect)
                fresh = effect.mode is StartMode.FRESH
                assert not (fresh and effect.job_id in self.delivered), "LO-304: output is mixed"
                assert_within_bounds(state, effect)
            elif isinstance(effect, SendStart):
                assert effect.spec.job_id not in self.ended
            elif isinstance(effect, JobStarted):
                assert effect.job_id not in self.ended
            elif isinstance(effect, JobForgotten):
                self.delivered.discard(effect.job_id)
                self.ended.pop(effect.job_id, None)
            elif isinstance(effect, ReplyRefused):
                assert effect.refusal.message

    def _order_of_arrival(self, state: State, effects: list[Effect]) -> None:
        """ORCH-3008: nobody is overtaken in a class on a pool that would have served them."""
        for effect in effects:
            if not isinstance(effect, DispatchRecord) or effect.job_id not in state.jobs:
                continue
            job, pool = state.jobs[effect.job_id], state.pools.get(effect.pool_id)
            if pool is None or pool.snapshot.replica_id != effect.replica_id:
                continue
            for older in waiting_in(state.queue):
                if (
                    older.seq < job.seq
                    and older.spec.priority is job.spec.priority
                    and older.job_id in self.waiting_before
                    and not older.declined_offers
                    and (not state.config.token_fairness or same_client(older, job))
                ):
                    assert not could_ever_run(older, pool), f"{job.job_id} overtook {older.job_id}"

    def _nobody_waits_in_vain(self, state: State, now_ms: int) -> None:
        """A free slot meets a job that fits it, unless it is kept for a job without room."""
        if state.draining:
            return
        waiting = waiting_in(state.queue)
        for pool_id in state.available:
            pool = state.pools[pool_id]
            # A job that let slots pass may lack memory today, and then the pool is kept for it.
            candidates = [j for j in waiting if could_ever_run(j, pool)]
            able = [j for j in candidates if not declines(state, j, now_ms)]
            if able and all(fits_now(j, pool) for j in candidates):
                ids = [j.job_id for j in able]
                raise AssertionError(f"{ids} wait while {pool_id} is free at {now_ms}")

    def _batch_is_not_starved(self, state: State, effects: list[Effect]) -> None:
        """LO-103: at most `batch_every` interactive placements pass by a batch job that fits."""
        if not state.queue.depth(Priority.BATCH):
            self.interactive_in_a_row = 0
        for effect in effects:
            if not isinstance(effect, DispatchRecord):
                continue
            job = state.jobs.get(effect.job_id)
            pool = state.pools.get(effect.pool_id)
            if job is None or pool is None:
                continue
            if job.spec.priority is Priority.BATCH:
                self.interactive_in_a_row = 0
            elif any(
                j.spec.priority is Priority.BATCH
                and j.job_id in self.waiting_before
                and j.spec.est_kv_bytes is None
                and not j.declined_offers
                and could_ever_run(j, pool)
                for j in waiting_in(state.queue)
            ):
                self.interactive_in_a_row += 1
                assert self.interactive_in_a_row <= state.config.batch_every
