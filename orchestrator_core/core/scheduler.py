"""Offering slots to waiting jobs: arrival order within a class, INTERACTIVE first.

Only the head of each lane is looked at, so the cost of an offer does not grow with the queue. When
a head cannot use what is open for reasons of its own (it failed there, or must replay elsewhere),
the offer passes on in its lane, at most `LOOK_AHEAD` times. Two rules bend the order. A pool on
which an older job lacks memory is kept for it: younger jobs of its class and BATCH jobs pass it by,
so large jobs cannot starve; a pool that could not hold the job when idle is not kept. And after
`batch_every` interactive placements in a row while a batch job waited, the longest waiting batch
job is offered slots first: the bound that keeps BATCH from starving. ORCH-3008, LO-103, LO-208.
"""

import heapq
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, islice

from orchestrator_core.core.decision import EXCLUSIONS_KEPT, Decision, ExclusionReason
from orchestrator_core.core.effects import DispatchRecord, SendStart, StartMode
from orchestrator_core.core.job import Attempt, Failover, Job, JobSpec, Needs, Priority
from orchestrator_core.core.lifecycle import leave_queue
from orchestrator_core.core.placement import Assigned, NoCapacity, PlacementInput, place
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.queue import Lane
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobTrigger, next_job_state
from orchestrator_core.core.timers import TimerKind

LOOK_AHEAD = 32
OTHERS_LOOKED_AT = 64


def schedule(state: State, now_ms: int) -> None:
    """Places as many waiting jobs as have a slot. O((lanes + placements) x available pools)."""
    if state.draining or not state.available or not len(state.queue):
        return
    reserved: dict[str, str] = {}
    while True:
        limit = _interactive_limit(state, reserved, now_ms)
        placed = _offer(state, Priority.INTERACTIVE, reserved, now_ms, limit)
        if limit is None or placed < limit:
            break
    _offer(state, Priority.BATCH, reserved, now_ms)


def _interactive_limit(state: State, reserved: dict[str, str], now_ms: int) -> int | None:
    """Gives BATCH the turn that it is owed; returns what INTERACTIVE may take until the next one.

    None when no batch job can use what is open.
    """
    if not state.queue.depth(Priority.BATCH):
        return None
    owed = state.interactive_since_batch >= state.config.batch_every
    if owed and not _offer(state, Priority.BATCH, reserved, now_ms, limit=1):
        return None
    return state.config.batch_every - state.interactive_since_batch


def _offer(
    state: State,
    priority: Priority,
    reserved: dict[str, str],
    now_ms: int,
    limit: int | None = None,
) -> int:
    """Offers slots to one class; `limit` bounds the placements. Returns how many there were."""
    heads: list[tuple[int, int, int, Lane]] = [
        (lane.waiting.first(), index, 0, lane)
        for index, lane in enumerate(state.queue.lanes)
        if lane.priority is priority
    ]
    heapq.heapify(heads)
    placed = 0
    while heads and state.available and (limit is None or placed < limit):
        seq, index, passed, lane = heapq.heappop(heads)
        if _place_one(state, state.queue.job(seq), reserved, now_ms):
            placed += 1
        elif passed < LOOK_AHEAD and _some_open(state, lane, reserved):
            passed += 1
        else:
            continue
        following = lane.waiting.above(seq)
        if following is not None:
            heapq.heappush(heads, (following, index, passed, lane))
    return placed


def _some_open(state: State, lane: Lane, reserved: dict[str, str]) -> bool:
    """True when a pool could still take a younger job of the lane."""
    return any(pool.snapshot.pool_id not in reserved for pool in _open_pools(state, lane.needs))


def _place_one(state: State, job: Job, reserved: dict[str, str], now_ms: int) -> bool:
    """Places a job, or notes the pools that must be kept for it."""
    pools = _open_pools(state, job.spec.needs)
    if not pools:
        return False
    answer = place(placement_input(state, job, pools, now_ms, reserved))
    if isinstance(answer, NoCapacity):
        for exclusion in answer.exclusions:
            lacking = {shortfall.reason for shortfall in exclusion.shortfalls}
            if lacking == {ExclusionReason.KV_ROOM} and state.pools[
                exclusion.pool_id
            ].could_make_room(job.spec.est_kv_bytes or 0):
                reserved.setdefault(exclusion.pool_id, job.job_id)
        return False
    if state.on_placement is not None:
        state.on_placement(job, reserved, now_ms)
    _dispatch(state, job, _with_everybody(state, job, answer.decision), now_ms)
    return True


def _with_everybody(state: State, job: Job, decision: Decision) -> Decision:
    """Completes a decision with the pools that were not looked at, for whoever asks why.

    O(OTHERS_LOOKED_AT): what keeps a pool out is noted when it changes, not when a job is placed.
    """
    feasible = state.feasible(job.spec.needs)
    others = (
        state.unavailable[pool_id]
        for pool_id in islice(feasible.pool_ids, OTHERS_LOOKED_AT)
        if pool_id in state.unavailable
    )
    known = chain(decision.exclusions, others, feasible.infeasible)
    return replace(
        decision,
        exclusions=tuple(islice(known, EXCLUSIONS_KEPT)),
        exclusions_total=len(state.pools) - decision.candidates_total,
    )


def could_start(state: State, spec: JobSpec, now_ms: int) -> bool:
    """True when a pool would take a newcomer at once, were nobody waiting. O(available pools)."""
    newcomer = Job(spec=spec, seq=state.next_seq, accepted_ms=now_ms)
    pools = _open_pools(state, spec.needs)
    return isinstance(place(placement_input(state, newcomer, pools, now_ms)), Assigned)


def placement_input(
    state: State,
    job: Job,
    pools: Iterable[Pool],
    now_ms: int,
    reserved: dict[str, str] | None = None,
    *,
    check_static: bool = False,
) -> PlacementInput:
    """Gathers what a placement of `job` on `pools` looks at."""
    return PlacementInput(
        spec=job.spec,
        attempt=job.attempts_made + 1,
        now_ms=now_ms,
        waited_ms=now_ms - job.accepted_ms,
        pools=_same_replica_set(job, pools),
        predictor=state.predictor,
        stale_after_ms=state.config.stale_after_ms,
        scoring=state.config.performance_scoring,
        check_static=check_static,
        warm_pool_id=(state.warm_pool_id(job.spec.session_id, now_ms) if job.spec.kv_reuse else ""),
        tried_replicas=frozenset(job.tried_replicas),
        reserved=reserved,
    )


def _same_replica_set(job: Job, pools: Iterable[Pool]) -> list[Pool]:
    """A verified replay stays within the replica set that generated the delivered output."""
    if not job.delivered or job.replica_set is None:
        return list(pools)
    return [pool for pool in pools if pool.snapshot.replica_set == job.replica_set]


def _open_pools(state: State, needs: Needs) -> list[Pool]:
    """Available pools that are feasible for the lane; walks the smaller of the two sets."""
    feasible, available = state.feasible(needs).pool_ids, state.available
    small, large = (
        (feasible, available) if len(feasible) < len(available) else (available, feasible)
    )
    return [state.pools[pool_id] for pool_id in small if pool_id in large]


def _dispatch(state: State, job: Job, decision: Decision, now_ms: int) -> None:
    """Binds a job's next attempt to the chosen incarnation. The slot is taken at once. LO-204."""
    pool = state.pools[decision.pool_id]
    snapshot = pool.snapshot
    leave_queue(state, job, now_ms)
    job.state = next_job_state(job.state, JobTrigger.PLACE)
    job.attempts_made += 1
    winner = decision.candidates[0]
    attempt = Attempt(
        job_id=job.job_id,
        number=job.attempts_made,
        pool_id=snapshot.pool_id,
        replica_id=snapshot.replica_id,
        host_id=snapshot.host_id,
        sent_ms=now_ms,
        est_kv_bytes=job.spec.est_kv_bytes or 0,
        concurrency=pool.occupied() + 1,
        predicted_end_ms=winner.first_token_ms + winner.decode_ms,
        last_progress_ms=now_ms,
        replay=job.delivered and job.spec.failover is Failover.VERIFIED_REPLAY,
    )
    job.attempt = attempt
    job.note_decision(decision)
    job.replica_set = snapshot.replica_set
    if job.first_dispatch_ms is None:
        job.first_dispatch_ms = now_ms
    state.attempts[attempt.key] = attempt
    pool.own[attempt.key] = attempt
    state.refresh(pool, now_ms)
    _count_classes(state, job)
    watch_attempt(state, job, now_ms)
    _emit(state, job, attempt)


def watch_attempt(state: State, job: Job, now_ms: int) -> None:
    """Starts the wall and idle watchdogs of a dispatched job. OC-CORE-1022."""
    config = state.config
    state.timers.set(TimerKind.WALL, job.job_id, now_ms + config.wall_timeout_ms)
    state.timers.set(TimerKind.IDLE, job.job_id, now_ms + config.idle_timeout_ms)


def _emit(state: State, job: Job, attempt: Attempt) -> None:
    assert job.replica_set is not None
    decision, deadline_ms = job.decisions[-1], job.spec.deadline_ms
    remaining_ms = None if deadline_ms is None else max(0, deadline_ms - attempt.sent_ms)
    state.emit(
        DispatchRecord(
            job_id=job.job_id,
            attempt=attempt.number,
            pool_id=attempt.pool_id,
            replica_id=attempt.replica_id,
            host_id=attempt.host_id,
            sent_ms=attempt.sent_ms,
            decision=decision,
            replica_set=job.replica_set,
        )
    )
    state.emit(
        SendStart(
            host_id=attempt.host_id,
            pool_id=attempt.pool_id,
            replica_id=attempt.replica_id,
            attempt=attempt.number,
            spec=job.spec,
            mode=StartMode.VERIFIED_REPLAY if attempt.replay else StartMode.FRESH,
            remaining_ms=remaining_ms,
        )
    )


def _count_classes(state: State, job: Job) -> None:
    """Counts interactive placements while a batch job waits."""
    if job.spec.priority is Priority.BATCH or not state.queue.depth(Priority.BATCH):
        state.interactive_since_batch = 0
    else:
        state.interactive_since_batch += 1
