"""A job and a slot become an attempt: what is noted and told when a placement is made. LO-204."""

from itertools import filterfalse, islice
from operator import attrgetter

from orchestrator_core.core.decision import EXCLUSIONS_KEPT, Decision, Exclusion
from orchestrator_core.core.effects import SendStart
from orchestrator_core.core.fairness import charge
from orchestrator_core.core.feasibility import kv_needed_bytes
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.lifecycle import leave_queue
from orchestrator_core.core.placement import (
    Assigned,
    PlacementInput,
    decision,
    pool_shortfalls,
    uncached_tokens,
)
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.spec import BATCH, StartMode
from orchestrator_core.core.state import Feasible, State
from orchestrator_core.core.states import JobTrigger, next_job_state
from orchestrator_core.core.timers import TimerKind

OTHERS_LOOKED_AT = 64
_IS_OPEN = attrgetter("open")


def dispatch(state: State, job: Job, request: PlacementInput, placed: Assigned) -> None:
    """Binds a job's next attempt to the chosen incarnation. The slot is taken at once. LO-204."""
    pool, now_ms = placed.pool, request.now_ms
    snapshot = pool.snapshot
    if state.on_placement is not None:
        state.on_placement(job, request.reserved or {}, now_ms)
    record = decision(
        request,
        placed,
        job.declined_offers,
        _others(state, state.feasible(job.spec.needs)),
        len(state.pools),
    )
    leave_queue(state, job, now_ms)
    job.state = next_job_state(job.state, JobTrigger.PLACE)
    job.attempts_made = number = job.attempts_made + 1
    attempt = job.attempt = Attempt(
        job.spec.job_id,
        number,
        snapshot.pool_id,
        snapshot.replica_id,
        snapshot.host_id,
        now_ms,
        kv_needed_bytes(job.spec, snapshot) or 0,
        uncached_tokens(request, pool),
        placed.end_ms,
    )
    attempt.last_progress_ms = now_ms
    attempt.mode = job.next_mode
    attempt.boot_id = state.hosts[snapshot.host_id].boot_id
    job.note_decision(record)
    changed = job.replica_set not in (None, snapshot.replica_set)
    job.mixed = job.mixed or (job.delivered and changed)
    job.replica_set = snapshot.replica_set
    if job.first_dispatch_ms is None:
        job.first_dispatch_ms = now_ms
    key = attempt.key
    state.attempts[key] = pool.own[key] = attempt
    state.refresh(pool, now_ms)
    charge(state, job, request.shape)
    _count_classes(state, job)
    watch_attempt(state, job, now_ms)
    _emit(state, job, attempt, record)


def watch_attempt(state: State, job: Job, now_ms: int) -> None:
    """Starts the wall and idle watchdogs of a dispatched job. OC-CORE-1022."""
    config, timers, job_id = state.config, state.timers, job.spec.job_id
    budget_ms = job.spec.budgets.time_ms
    wall_ms = min(config.wall_timeout_ms, budget_ms or config.wall_timeout_ms)
    timers.set(TimerKind.WALL, job_id, now_ms + wall_ms)
    timers.set(TimerKind.IDLE, job_id, now_ms + config.idle_timeout_ms)


def _others(state: State, feasible: Feasible) -> list[Exclusion]:
    """The first pools that were not looked at, for whoever asks why. O(OTHERS_LOOKED_AT).

    What keeps a feasible pool out is noted once after each change of it.
    """
    looked_at = islice(feasible.pools.values(), OTHERS_LOOKED_AT)
    shut = islice(filterfalse(_IS_OPEN, looked_at), EXCLUSIONS_KEPT)
    return [*[pool.exclusion or _excluded(state, pool) for pool in shut], *feasible.infeasible]


def _excluded(state: State, pool: Pool) -> Exclusion:
    """Notes why a pool is not open."""
    shortfalls = pool_shortfalls(pool, pool.noted_ms, state.config.stale_after_ms)
    noted = pool.exclusion = Exclusion(pool.snapshot.pool_id, shortfalls)
    return noted


def _emit(state: State, job: Job, attempt: Attempt, record: Decision) -> None:
    assert job.replica_set is not None
    spec, number, sent_ms = job.spec, attempt.number, attempt.sent_ms
    pool_id, replica_id, host_id = attempt.pool_id, attempt.replica_id, attempt.host_id
    deadline_ms = spec.deadline_ms
    remaining_ms = None if deadline_ms is None else max(0, deadline_ms - sent_ms)
    former = job.unreleased if attempt.mode is StartMode.CONTINUE else None
    state.emit(
        DispatchRecord(
            spec.job_id,
            number,
            pool_id,
            replica_id,
            host_id,
            sent_ms,
            record,
            job.replica_set,
            attempt.mode,
            job.failures,
            tuple(sorted(job.tried_replicas)) if job.tried_replicas else (),
            job.refusals,
            0 if former is None else former.number,
            attempt.boot_id,
        )
    )
    same_tokens = not job.mixed
    state.emit(
        SendStart(
            host_id, pool_id, replica_id, number, spec, attempt.mode, remaining_ms, same_tokens
        )
    )


def _count_classes(state: State, job: Job) -> None:
    """Credits BATCH for each interactive placement while a batch job waits.

    What BATCH could not use is not saved up: more than one turn's worth would let it stand before
    INTERACTIVE for as long as it was kept out by something else.
    """
    if not state.queue.depth(BATCH):
        state.batch_credit = 0
        return
    interactive, batch = state.config.turns
    if job.spec.priority is BATCH:
        state.batch_credit = max(0, state.batch_credit - interactive)
    else:
        state.batch_credit = min(state.batch_credit + batch, interactive + batch - 1)
