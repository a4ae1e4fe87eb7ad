"""The state machine: `step(event, now_ms) -> effects`. Everything that is decided is decided here.

One owner calls it from one thread, so `step` is the critical section: no locks, no waits.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import assert_never

from orchestrator_core.core import (
    audience,
    cataloging,
    draining,
    expiry,
    explain,
    fleet,
    intake,
    recovery,
    retracting,
    running,
    spending,
)
from orchestrator_core.core.catalog import Catalog
from orchestrator_core.core.checkpoint import Frozen, freeze, thaw
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decision import Exclusion
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    ConfigChanged,
    DrainRequested,
    EndConfirmed,
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
    Recovered,
    SessionDeleted,
    SnapshotsReported,
    Stalled,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.explain import Explained, watch
from orchestrator_core.core.forecast import (
    UNKNOWN,
    Forecast,
    finish_probability,
    forecast,
    on_time_probability,
)
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.reconfigure import reconfigure
from orchestrator_core.core.records import PoolDrainRecord
from orchestrator_core.core.session import Session, Sessions
from orchestrator_core.core.spec import Budgets, Needs, Priority
from orchestrator_core.core.spending import Balance
from orchestrator_core.core.stalls import extend
from orchestrator_core.core.state import State
from orchestrator_core.core.states import AttemptState, JobState


class Core:
    """The orchestrator's state machine.

    `step` is the only way in. The views below it are for answering questions; what they return
    belongs to the core and must not be changed.
    """

    def __init__(self, config: CoreConfig) -> None:
        self._state = State(config)
        self._last_ms = 0

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Applies one event and returns what must happen, in order.

        `now_ms` is the core's clock. Time that goes backwards counts as standing still.
        """
        state = self._state
        if now_ms > self._last_ms:
            self._last_ms = now_ms
        else:
            now_ms = self._last_ms
        state.effects, state.stepping = [], True
        self._apply(event, now_ms)
        if state.timers.due(now_ms):
            expiry.expire_due(state, now_ms)
        state.stepping = False
        return state.effects

    def freeze(self) -> Frozen:
        """Everything that decides what later steps answer. O(jobs); pauses the loop. LO-207."""
        return freeze(self._state, self._last_ms)

    @classmethod
    def thawed(cls, frozen: Frozen, config: CoreConfig) -> "Core":
        """A core that answers from here on as the frozen one did."""
        core = cls(config)
        core._state, core._last_ms = thaw(frozen, config), frozen.last_ms
        return core

    def watch_placements(self, tell: Callable[[Explained], None]) -> None:
        """Tells of every placement in full, at the moment it is decided. Slow; for replays."""
        watch(self._state, tell)

    def next_deadline_ms(self) -> int | None:
        """Instant at which `step(Tick())` is due, or None."""
        return self._state.timers.next_ms()

    # --- views

    @property
    def config(self) -> CoreConfig:
        """The bounds in force."""
        return self._state.config

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs that are live or retained, in order of arrival."""
        return self._state.jobs

    @property
    def pools(self) -> Mapping[str, Pool]:
        """All registered pools."""
        return self._state.pools

    @property
    def draining(self) -> bool:
        """True after a drain was requested."""
        return self._state.draining

    @property
    def live_attempts(self) -> int:
        """Attempts that hold a slot."""
        return len(self._state.attempts)

    @property
    def attempts(self) -> Mapping[tuple[str, int], Attempt]:
        """Attempts that hold a slot, by job id and number, in order of dispatch."""
        return self._state.attempts

    def ended_last(self, count: int) -> list[Job]:
        """The jobs that ended last, at most `count`, the newest first. O(count)."""
        state = self._state
        kinds = (reversed(state.ended), reversed(state.ended_unrun))
        by_kind = ([state.jobs[job_id] for job_id in islice(kind, count)] for kind in kinds)
        return list(islice(merge(*by_kind, key=_ended_order), count))

    @property
    def ended_total(self) -> int:
        """Ended jobs that are remembered."""
        return len(self._state.ended) + len(self._state.ended_unrun)

    def expected_tokens(self, job: Job) -> int:
        """Tokens of output that are expected of a job in all."""
        return round(self._state.predictor.shape(job.spec).output_tokens)

    def holds_slot(self, job_id: str, attempt: int) -> bool:
        """True while that attempt counts and holds a slot."""
        return (job_id, attempt) in self._state.attempts

    def stopping(self, job_id: str, attempt: int) -> bool:
        """True when a job has ended and its attempt was told to stop, but has not confirmed it."""
        found = self._state.attempts.get((job_id, attempt))
        return found is not None and found.state is AttemptState.CANCELLING

    def queue_depth(self, priority: Priority | None = None) -> int:
        """Jobs that wait, in one class or in both."""
        return len(self._state.queue) if priority is None else self._state.queue.depth(priority)

    def waiting_by_needs(self) -> Iterator[tuple[Needs, Priority, int]]:
        """How many wait, by what they need and their class. O(lanes)."""
        for lane in self._state.queue.lanes:
            yield lane.needs, lane.priority, len(lane.waiting)

    def queue_order(self, priority: Priority) -> tuple[str, ...]:
        """Job ids of one class in offer order. O(n)."""
        return self._state.queue.snapshot(priority)

    def waiting(self, priority: Priority) -> Iterator[Job]:
        """Jobs of one class in offer order, for whoever needs only the first. O(log n) for each."""
        return self._state.queue.waiting(priority)

    def last_waiting(self, priority: Priority) -> Job | None:
        """The job of one class that is offered a slot last. O(lanes)."""
        return self._state.queue.last(priority)

    def position(self, job: Job) -> int | None:
        """Present rank of a waiting job, 1 is next; None when it does not wait."""
        return self._state.queue.position(job) if job.state is JobState.QUEUED else None

    def forecast(self, job: Job) -> Forecast:
        """Present prediction for a waiting job, milliseconds from now; none during a drain."""
        assert job.state is JobState.QUEUED, "only a waiting job has a forecast"
        if self._state.draining:
            return UNKNOWN
        place = self._state.queue.place_in_line(job.spec, job.seq)
        return forecast(self._state, job.spec, place, self._last_ms)

    def on_time_probability(self, job: Job, now_ms: int) -> float | None:
        """Probability that a live job ends before its deadline; None without one."""
        if job.attempt is None:
            return on_time_probability(self._state, job.spec, self.forecast(job), now_ms)
        return finish_probability(self._state, job, now_ms)

    @property
    def sessions(self) -> Sessions:
        """All sessions; the silent ones until their time to live has passed."""
        return self._state.sessions

    def session(self, identity: str, session_id: str) -> Session | None:
        """A session of a client, while it lives."""
        return spending.find(self._state, identity, session_id, self._last_ms)

    def session_account(self, session: Session) -> Balance:
        """What a session has, and until when."""
        return spending.account(self._state, session)

    def remaining(self, job: Job, now_ms: int) -> Budgets | None:
        """What would be left of all budgets if a job ended now; None without budgets."""
        return spending.remaining(self._state, job, now_ms)

    def waiting_for(self, job: Job, now_ms: int) -> tuple[Exclusion, ...]:
        """Why each registered pool does not take a waiting job now; missing are those that could.

        O(pools); more where a pool is open and older jobs want memory there.
        """
        return explain.waiting_for(self._state, job, now_ms)

    @property
    def hosts_due_ms(self) -> int:
        """Until then hosts may come back that were there before a restart; 0: none are awaited."""
        return self._state.hosts_due_ms

    def pool_refusal(self, host_id: str, pool_id: str) -> str | None:
        """Why a host cannot register a pool, for people; None when it can."""
        return fleet.pool_refusal(self._state, host_id, pool_id)

    def drain_of(self, pool_id: str) -> PoolDrainRecord | None:
        """The drain of a pool by an operator; None when there is none."""
        return self._state.drains.get(pool_id)

    @property
    def catalog(self) -> Catalog:
        """The catalog of models."""
        return self._state.catalog

    def tokens_per_s(self, pool: Pool) -> float:
        """Believed decode rate of a single stream of a pool, at its present clocks."""
        return 1000.0 * pool.snapshot.perf_scale / pool.rates.token_ms(1)

    def _apply(self, event: Event, now_ms: int) -> None:  # noqa: C901, PLR0912, PLR0915 - one arm each
        state = self._state
        # An arm costs one look at the type, so what every job goes through comes first.
        match event:
            case OutputProgressed():
                running.output_progressed(state, event, now_ms)
            case EnqueueRequested():
                intake.enqueue(state, event, now_ms)
            case AttemptStarted():
                running.attempt_started(state, event, now_ms)
            case AttemptEnded():
                running.attempt_ended(state, event, now_ms)
            case SnapshotsReported():
                fleet.snapshots_reported(state, event, now_ms)
            case Tick():
                pass
            case CancelRequested():
                intake.cancel(state, event, now_ms)
            case SubscribersChanged():
                audience.subscribers_changed(state, event, now_ms)
            case OutputAcknowledged():
                running.output_acknowledged(state, event)
            case HostRegistered():
                fleet.host_registered(state, event, now_ms)
            case HostLost():
                fleet.host_lost(state, event, now_ms)
            case AttemptRefused():
                running.attempt_refused(state, event, now_ms)
            case AcceptsFailed():
                retracting.accepts_failed(state, event, now_ms)
            case EndConfirmed():
                expiry.end_confirmed(state, event, now_ms)
            case DrainRequested():
                state.draining = True
            case ConfigChanged():
                reconfigure(state, event.config, now_ms)
            case Recovered():
                recovery.recover(state, event, now_ms)
            case PoolDrainRequested():
                draining.drain_requested(state, event, now_ms)
            case ModelPut():
                cataloging.put(state, event, now_ms)
            case ModelStateSet():
                cataloging.set_state(state, event, now_ms)
            case ModelDeleted():
                cataloging.delete(state, event, now_ms)
            case SessionDeleted():
                intake.delete_session(state, event, now_ms)
            case Stalled():
                extend(state, event.pause_ms, now_ms)
            case _:
                assert_never(event)


def _ended_order(job: Job) -> int:
    return -(job.ended_ms or 0)
