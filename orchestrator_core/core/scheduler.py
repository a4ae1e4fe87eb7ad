"""Offering slots to waiting jobs: arrival order within a class, INTERACTIVE first.

Only the head of each lane is looked at, so the cost of an offer does not grow with the queue. An
offer passes on in its lane, at most `LOOK_AHEAD` times, when a job cannot use what is open for
reasons of its own (it failed there, or must replay elsewhere) or declines it: waiting for a faster
pool is predicted to be better (`outlook.weigh`), for at most `decline_max_ms`. If everybody
declines a slot that should be used, it goes to the job that loses least.

Two rules bend the order. A pool on which an older job lacks memory is kept for it: younger jobs of
its class and BATCH jobs pass it by, so large jobs cannot starve; a pool that could not hold the job
when idle is not kept. And the classes take turns (`CoreConfig.turns`) while both wait: after so
many interactive placements the longest waiting batch job is offered slots first, the bound that
keeps BATCH from starving. ORCH-3008, LO-103, LO-208.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from orchestrator_core.core.decision import (
    ExclusionReason,
)
from orchestrator_core.core.declining import may_decline, same_replica_set, weigh_offer
from orchestrator_core.core.dispatching import dispatch
from orchestrator_core.core.effects import OfferDeclined
from orchestrator_core.core.fairness import served_tokens
from orchestrator_core.core.feasibility import kv_needed_bytes
from orchestrator_core.core.job import Job
from orchestrator_core.core.outlook import (
    Advice,
    Weighed,
)
from orchestrator_core.core.placement import (
    Assigned,
    NoCapacity,
    PlacementInput,
    place,
)
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.queue import Lane
from orchestrator_core.core.spec import BATCH, INTERACTIVE, JobSpec, Needs, Priority
from orchestrator_core.core.spending import warm_session_of
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import TimerKind

LOOK_AHEAD = 16
# So many older jobs are looked at to say for whom a pool is kept.
OLDER_MAX = 256


@dataclass(slots=True)
class Proposal:
    """A job that declined a slot which should be used, and what it would lose by taking it."""

    loss: float
    job: Job
    request: PlacementInput
    placed: Assigned


@dataclass(slots=True)
class Round:
    """One round of offers: pools kept for older jobs, and the best proposal so far."""

    now_ms: int
    reserved: dict[str, str] = field(default_factory=dict)
    proposal: Proposal | None = None

    def withdraw(self) -> None:
        """Nothing is proposed."""
        self.proposal = None


def schedule(state: State, now_ms: int) -> None:
    """Places as many waiting jobs as have a slot. O((lanes + placements) x available pools)."""
    if state.draining or not state.available or not len(state.queue):
        return
    offers = Round(now_ms)
    while state.available:
        offers.withdraw()
        placed = _pass_down_all(state, offers)
        proposal = offers.proposal
        if proposal is None:
            break
        # After a placement less is free and fewer wait than when the proposal was weighed.
        if not placed:
            dispatch(state, proposal.job, proposal.request, proposal.placed)


def end_if_started(state: State, spec: JobSpec, now_ms: int) -> int | None:
    """Predicted milliseconds to the end of a newcomer that a pool takes at once; None: none does.

    As if nobody waited. O(available pools).
    """
    newcomer = Job(spec=spec, seq=state.next_seq, accepted_ms=now_ms)
    newcomer.shape = state.predictor.shape(spec)
    pools = _open_pools(state, spec.needs, now_ms)
    answer = place(placement_input(state, newcomer, pools, now_ms))
    return answer.end_ms if isinstance(answer, Assigned) else None


def placement_input(
    state: State,
    job: Job,
    pools: list[Pool],
    now_ms: int,
    reserved: dict[str, str] | None = None,
    *,
    check_all: bool = False,
) -> PlacementInput:
    """Gathers what a placement of `job` on `pools` looks at.

    Unless `check_all`, the pools are feasible for the job and open.
    """
    spec, config = job.spec, state.config
    warm_session, warm_pool_id, warm_tokens = "", "", None
    session = warm_session_of(state, job, now_ms)
    if session is not None:
        warm_session = session.session_id
        pool = state.pools.get(session.pool_id)
        if pool is not None and pool.snapshot.replica_id == session.replica_id:
            warm_pool_id, warm_tokens = session.pool_id, session.kv_tokens
    attempt, waited_ms, all_open = job.attempts_made + 1, now_ms - job.accepted_ms, not check_all
    return PlacementInput(
        spec,
        job.shape,
        attempt,
        now_ms,
        waited_ms,
        same_replica_set(job, pools),
        config.stale_after_ms,
        config.effective_scorer,
        check_all,
        all_open,
        warm_session,
        warm_pool_id,
        warm_tokens,
        frozenset(job.tried_replicas),
        reserved,
    )


def kept_for_older(state: State, job: Job, pools: Sequence[Pool], now_ms: int) -> dict[str, str]:
    """Those of open `pools` that are kept for jobs which are offered slots before `job`, by id.

    As a round of offers would keep them, of the first `OLDER_MAX` older jobs that state what memory
    they need; in a lane those that an offer may be passed on to. Does not change the state.
    """
    offers = Round(now_ms)
    for older in islice(_older(state, job), OLDER_MAX):
        feasible = state.feasible(older.spec.needs).pools
        mine = [pool for pool in pools if pool.snapshot.pool_id in feasible]
        answer = place(placement_input(state, older, mine, now_ms, offers.reserved))
        if isinstance(answer, NoCapacity):
            _reserve(state, older, answer, offers)
    return offers.reserved


def _older(state: State, job: Job) -> Iterator[Job]:
    """Jobs of the same class that came before, and INTERACTIVE ones before BATCH, if sized."""
    for lane in state.queue.lanes:
        if lane.priority is not job.spec.priority and lane.priority is BATCH:
            continue
        seq: int | None = lane.waiting.first()
        for _ in range(LOOK_AHEAD + 1):
            if seq is None or (lane.priority is job.spec.priority and seq >= job.seq):
                break
            older = state.queue.job(seq)
            if older.spec.est_kv_bytes is not None or older.spec.needs.required_ctx is not None:
                yield older
            seq = lane.waiting.above(seq)


# --- rounds of offers


def _pass_down_all(state: State, offers: Round) -> int:
    """Goes down the lanes of both classes once, in turns; returns the number of placements."""
    total = 0
    while True:
        limit, placed = _interactive_limit(state, offers)
        total += placed
        placed = _pass_down(state, INTERACTIVE, offers, limit)
        total += placed
        if limit is None or placed < limit:
            break
    return total + _pass_down(state, BATCH, offers)


def _interactive_limit(state: State, offers: Round) -> tuple[int | None, int]:
    """Gives BATCH the turns that it is owed; returns what INTERACTIVE may take until the next one.

    None when no batch job can use what is open. The second number is how many turns were used.
    """
    placed = 0
    if not state.queue.depth(BATCH):
        return None, placed
    interactive, batch = state.config.turns
    while state.batch_credit >= interactive:
        if not _pass_down(state, BATCH, offers, limit=1):
            return None, placed
        placed += 1
    return -(-(interactive - state.batch_credit) // batch), placed


def _pass_down(state: State, priority: Priority, offers: Round, limit: int | None = None) -> int:
    """Goes down the lanes of a class once; returns the number of placements."""
    if not state.queue.depth(priority):
        return 0
    heads = [
        (_rank(state, lane), lane.waiting.first(), index, 0, lane)
        for index, lane in enumerate(state.queue.lanes)
        if lane.priority is priority
    ]
    heapq.heapify(heads)
    placed = 0
    # Open pools by lane; who declines leaves them as they are.
    known: dict[int, list[Pool]] = {}
    while heads and state.available and (limit is None or placed < limit):
        rank, seq, index, passed, lane = heapq.heappop(heads)
        now_rank = _rank(state, lane)
        if now_rank > rank:
            # Its identity was served meanwhile: others may be before it now.
            heapq.heappush(heads, (now_rank, seq, index, passed, lane))
            continue
        pools = known.get(index)
        if pools is None:
            pools = known[index] = _open_pools(state, lane.needs, offers.now_ms)
        if pools and _place_one(state, state.queue.job(seq), pools, offers, passed):
            placed += 1
            if not state.available:
                break
            known.clear()
        elif passed < LOOK_AHEAD and _some_unreserved(pools, offers):
            passed += 1
        else:
            continue
        following = lane.waiting.above(seq)
        if following is not None:
            head = (_rank(state, lane), following, index, passed, lane)
            heapq.heappush(heads, head)
    return placed


def _rank(state: State, lane: Lane) -> float:
    """What goes before arrival order: the least served identity, where fairness is on. LO-104."""
    return served_tokens(state, lane.identity) if state.config.token_fairness else 0.0


def _some_unreserved(pools: list[Pool], offers: Round) -> bool:
    """True when a pool could still take a younger job of the lane."""
    return any(pool.snapshot.pool_id not in offers.reserved for pool in pools)


def _place_one(state: State, job: Job, pools: list[Pool], offers: Round, passed: int) -> bool:
    """Places a job on an open pool, or notes what it declined and the pools to keep for it."""
    now_ms = offers.now_ms
    request = placement_input(state, job, pools, now_ms, offers.reserved)
    answer = place(request)
    if isinstance(answer, NoCapacity):
        _reserve(state, job, answer, offers)
        return False
    if may_decline(state, job, now_ms):
        ahead = passed
        if job.spec.priority is BATCH:
            ahead += state.queue.depth(Priority.INTERACTIVE)
        weighed = weigh_offer(state, job, request, answer, ahead)
        if weighed.advice is not Advice.TAKE:
            _decline(state, job, answer, weighed, now_ms)
            best = offers.proposal
            if weighed.advice is Advice.PASS_ON and (best is None or weighed.loss < best.loss):
                # What is kept for jobs that come later must not count against this one.
                asked = replace(request, reserved=dict(offers.reserved))
                offers.proposal = Proposal(weighed.loss, job, asked, answer)
            return False
    dispatch(state, job, request, answer)
    return True


def _decline(state: State, job: Job, placed: Assigned, weighed: Weighed, now_ms: int) -> None:
    """Notes that a job let a slot pass; told once per job, and bounded by a deadline."""
    job.declined_offers += 1
    if job.declined_since_ms is None:
        job.declined_since_ms = now_ms
        due_ms = now_ms + state.config.decline_max_ms
        state.timers.set(TimerKind.DECLINE, job.job_id, due_ms)
        pool_id, elsewhere_ms = placed.pool.snapshot.pool_id, int(weighed.elsewhere_ms)
        state.emit(OfferDeclined(job.job_id, pool_id, placed.end_ms, elsewhere_ms))


def _reserve(state: State, job: Job, answer: NoCapacity, offers: Round) -> None:
    """Keeps the pools for a job that lacks nothing but memory which others will free."""
    for exclusion in answer.exclusions:
        lacking = {shortfall.reason for shortfall in exclusion.shortfalls}
        pool = state.pools[exclusion.pool_id]
        needed = kv_needed_bytes(job.spec, pool.snapshot) or 0
        if lacking == {ExclusionReason.KV_ROOM} and pool.could_make_room(needed):
            offers.reserved.setdefault(exclusion.pool_id, job.job_id)


def _open_pools(state: State, needs: Needs, now_ms: int) -> list[Pool]:
    """Feasible pools of a lane that can take an attempt now; walks the smaller of the two sets."""
    feasible, available = state.feasible(needs).pools, state.available
    if len(available) < len(feasible):
        return [
            pool
            for pool_id, pool in available.items()
            if pool_id in feasible and pool.open_until_ms >= now_ms
        ]
    return [pool for pool in feasible.values() if pool.open_until_ms >= now_ms]
