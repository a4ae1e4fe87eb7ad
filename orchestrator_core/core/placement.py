"""Placement: filter, score, pick. One pass over the feasible pools. LO-202, ORCH-3012, LO-208.

The score is the predicted end in integer milliseconds. Ties go, in order, to: warm keys and values
for the session; more free slots; more memory left; higher decode rate; the lexicographically least
pool id. With performance scoring off the score is 0 and the decode rate does not count.

`place` decides, `decision` writes the record of what it saw, for whoever asks why. The pass over
the pools reads numbers that each pool keeps ready (`Pool.note`), so that it stays short.
"""

import enum
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator_core.core.config import Scorer
from orchestrator_core.core.decision import (
    CANDIDATES_KEPT,
    EXCLUSIONS_KEPT,
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Shortfall,
)
from orchestrator_core.core.feasibility import (
    STATIC_REASONS,
    incompatibility,
    kv_needed_bytes,
    static_shortfalls,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import WARM_PRIOR_SHARE
from orchestrator_core.core.scores import SCORES
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import JobSpec, Shape


@plain_init
@dataclass(frozen=True, slots=True)
class PlacementInput:
    """Everything that one placement looks at.

    `pools` are the pools to consider; with `check_static` the static filter runs on them too,
    without it they are known to be feasible. With `all_open` they are also known to be able to
    take an attempt at this moment, so only what is particular to the job is looked at. `reserved`
    maps pools that are kept for an older job to that job. `warm_session` is the session whose keys
    and values count, empty where none do; `warm_pool_id` served it last and holds `warm_tokens` of
    it, None where that is not known. `complete` lifts the limits of the record.
    """

    spec: JobSpec
    shape: Shape
    attempt: int
    now_ms: int
    waited_ms: int
    pools: Sequence[Pool]
    stale_after_ms: int
    scorer: Scorer = Scorer.PREDICTED_END
    check_static: bool = True
    all_open: bool = False
    warm_session: str = ""
    warm_pool_id: str = ""
    warm_tokens: int | None = None
    tried_replicas: frozenset[str] = frozenset()
    reserved: Mapping[str, str] | None = None
    complete: bool = False


CANCEL_UNCONFIRMED = "cancel unconfirmed"
DRAINING = "drained by an operator"
RETIRED = "its model is retired"


class NoCapacityKind(enum.Enum):
    """Why no pool can take the job now."""

    INCOMPATIBLE = "incompatible"
    EXHAUSTED = "exhausted"
    NO_FRESH_POOL = "no_fresh_pool"


@dataclass(slots=True)
class Assigned:
    """The job goes to `pool` and is predicted to end there in `end_ms`.

    `pools` and `scores` are the candidates, in step; `ends_ms` their predicted ends.
    """

    pool: Pool
    end_ms: int
    pools: Sequence[Pool]
    scores: list[int]
    ends_ms: list[int]
    exclusions: list[Exclusion]


@plain_init
@dataclass(frozen=True, slots=True)
class NoCapacity:
    """No pool can take it now; `incompatible` names the family when none ever can."""

    kind: NoCapacityKind
    exclusions: tuple[Exclusion, ...]
    incompatible: Reason | None = None


def place(request: PlacementInput) -> Assigned | NoCapacity:
    """Decides where one job goes. O(pools)."""
    pools: Sequence[Pool] = request.pools
    exclusions: list[Exclusion] = []
    if not request.all_open or _particular(request):
        pools, exclusions = _filter(request)
    if not pools:
        return _no_capacity(exclusions)
    ends_ms = predicted_ends_ms(request, pools)
    scores = SCORES[request.scorer](ends_ms, request.spec, request.now_ms)
    best = min(scores)
    index = scores.index(best)
    if scores.count(best) > 1:
        tied = [i for i, score in enumerate(scores) if score == best]
        index = min(tied, key=lambda i: _tie_key(request, pools[i]))
    return Assigned(pools[index], ends_ms[index], pools, scores, ends_ms, exclusions)


def predicted_ends_ms(request: PlacementInput, pools: Sequence[Pool]) -> list[int]:
    """Milliseconds until the job would end on each pool, were it placed there now."""
    prompt, output = request.shape.prompt_tokens, request.shape.output_tokens
    if not request.warm_session:
        return [
            int(p.first_base_ms + p.prompt_token_ms * prompt + p.next_token_ms * output)
            for p in pools
        ]
    return [
        int(
            p.first_base_ms
            + p.prompt_token_ms * uncached_tokens(request, p)
            + p.next_token_ms * output
        )
        for p in pools
    ]


def uncached_tokens(request: PlacementInput, pool: Pool) -> float:
    """Prompt tokens that a pool would have to read: fewer where the session is warm. ORCH-3009."""
    prompt = request.shape.prompt_tokens
    if not warm(request, pool):
        return prompt
    if request.warm_tokens is None or request.warm_pool_id != pool.snapshot.pool_id:
        return prompt * (1.0 - WARM_PRIOR_SHARE)
    return max(1.0, prompt - request.warm_tokens)


def warm(request: PlacementInput, pool: Pool) -> bool:
    """True when keys and values of the job's session are expected at the pool."""
    session = request.warm_session
    if not session:
        return False
    return (
        request.warm_pool_id == pool.snapshot.pool_id or session in pool.snapshot.warm_session_ids
    )


def decision(
    request: PlacementInput,
    placed: Assigned,
    declined: int = 0,
    others: Sequence[Exclusion] = (),
    pools_total: int | None = None,
) -> Decision:
    """Writes the record of a placement: the winner first among the best candidates.

    `others` are pools that were not looked at, with what keeps them out; `pools_total` counts all.
    """
    candidates_limit, exclusions_limit = (
        (None, None) if request.complete else (CANDIDATES_KEPT, EXCLUSIONS_KEPT)
    )
    ranked, decided_by = _ranked(request, placed, candidates_limit)
    excluded = len(placed.exclusions) if pools_total is None else pools_total - len(placed.pools)
    candidates = tuple([_candidate(request, placed, i) for i in ranked])
    exclusions = (*placed.exclusions, *others)[:exclusions_limit]
    return Decision(
        request.spec.job_id,
        request.attempt,
        request.now_ms,
        placed.pool.snapshot.pool_id,
        decided_by,
        candidates,
        len(placed.pools),
        exclusions,
        excluded,
        request.waited_ms,
        declined,
    )


def pool_shortfalls(pool: Pool, now_ms: int, stale_after_ms: int) -> tuple[Shortfall, ...]:
    """Returns why a pool can take no job at all at this moment; empty means it can."""
    snapshot = pool.snapshot
    found: list[Shortfall] = []
    if snapshot.state is not PoolState.READY:
        state, why = snapshot.state.value, snapshot.state_reason
        told = f"{state}: {why}" if why else state
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", told))
    if not pool.fresh(now_ms, stale_after_ms):
        age = f"as of {pool.as_of_ms}" if pool.connected else "not connected"
        found.append(Shortfall(ExclusionReason.STALE, f"{stale_after_ms} ms", age))
    if pool.slots_free() == 0:
        found.append(Shortfall(ExclusionReason.NO_SLOT, "1", "0"))
    if pool.closed_until_ms > now_ms:
        wait = f"refused, closed until {pool.closed_until_ms}"
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", wait))
    if pool.draining:
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", DRAINING))
    if pool.retired:
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", RETIRED))
    if pool.unconfirmed:
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", CANCEL_UNCONFIRMED))
    return tuple(found)


def dynamic_shortfalls(request: PlacementInput, pool: Pool) -> tuple[Shortfall, ...]:
    """Returns why a feasible pool cannot take the job at this moment; empty means it can."""
    snapshot = pool.snapshot
    found: list[Shortfall] = []
    if not request.all_open:
        found.extend(pool_shortfalls(pool, request.now_ms, request.stale_after_ms))
    if snapshot.replica_id in request.tried_replicas:
        found.append(Shortfall(ExclusionReason.TRIED, "another replica", snapshot.replica_id))
    needed, room = kv_needed_bytes(request.spec, snapshot), pool.kv_room_bytes()
    if needed is not None and room is not None and needed > room:
        found.append(Shortfall(ExclusionReason.KV_ROOM, str(needed), str(room)))
    if request.reserved and snapshot.pool_id in request.reserved:
        older = request.reserved[snapshot.pool_id]
        found.append(Shortfall(ExclusionReason.RESERVED, "unreserved", f"kept for {older}"))
    return tuple(found)


def could_ever_take(request: PlacementInput, pool: Pool) -> bool:
    """False when a feasible pool could not even take the job when it is idle."""
    if pool.snapshot.replica_id in request.tried_replicas:
        return False
    needed = kv_needed_bytes(request.spec, pool.snapshot)
    return needed is None or pool.could_make_room(needed)


def _particular(request: PlacementInput) -> bool:
    """True when something about the job itself may keep it from an open pool."""
    spec = request.spec
    sized = spec.est_kv_bytes is not None or spec.needs.required_ctx is not None
    return bool(sized or request.tried_replicas or request.reserved)


def _filter(request: PlacementInput) -> tuple[list[Pool], list[Exclusion]]:
    fitting: list[Pool] = []
    exclusions: list[Exclusion] = []
    for pool in request.pools:
        static: Iterable[Shortfall] = ()
        if request.check_static:
            static = static_shortfalls(request.spec.needs, pool.snapshot)
        shortfalls = (*static, *dynamic_shortfalls(request, pool))
        if shortfalls:
            exclusions.append(Exclusion(pool.snapshot.pool_id, shortfalls))
        else:
            fitting.append(pool)
    exclusions.sort(key=lambda e: e.pool_id)
    return fitting, exclusions


def _ranked(request: PlacementInput, placed: Assigned, limit: int | None) -> tuple[list[int], str]:
    """Indices of the best candidates, the winner first, and the rule that made it the winner."""
    pools, scores = placed.pools, placed.scores
    if len(pools) == 1:
        return [0], "only_candidate"
    kept: Sequence[int] = range(len(pools))
    if limit is not None and len(pools) > limit:
        worst = heapq.nsmallest(limit, scores)[-1]
        kept = [i for i, score in enumerate(scores) if score <= worst]
    keys = {i: (scores[i], *_tie_key(request, pools[i])) for i in kept}
    ranked = sorted(keys, key=keys.__getitem__)
    first, second = keys[ranked[0]], keys[ranked[1]]
    decided_by = next(name for name, a, b in zip(_TIE_BREAKS, first, second, strict=True) if a != b)
    return ranked[:limit], decided_by


def _candidate(request: PlacementInput, placed: Assigned, index: int) -> Candidate:
    pool, end_ms = placed.pools[index], placed.ends_ms[index]
    snapshot = pool.snapshot
    first = pool.first_base_ms + pool.prompt_token_ms * uncached_tokens(request, pool)
    first_token_ms = min(int(first), end_ms)
    prompt_ms = first_token_ms - min(int(pool.first_base_ms), first_token_ms)
    decode_ms = end_ms - first_token_ms
    slots_free = snapshot.slots_total - pool.busy
    tokens_per_s = 1000.0 / pool.next_token_ms
    snapshot_age_ms = max(0, request.now_ms - pool.as_of_ms)
    return Candidate(
        snapshot.pool_id,
        snapshot.replica_id,
        end_ms,
        first_token_ms,
        decode_ms,
        warm(request, pool),
        slots_free,
        _headroom_bytes(request, pool),
        tokens_per_s,
        snapshot.version,
        snapshot_age_ms,
        snapshot.perf_scale,
        prompt_ms,
    )


_TIE_BREAKS = ("score", "warm_kv", "slots_free", "vram_headroom", "tokens_per_s", "pool_id")


def _tie_key(request: PlacementInput, pool: Pool) -> tuple[bool, int, int, float, str]:
    """Sort key among equal scores, least first, in the order of `_TIE_BREAKS`.

    Memory that is not known ranks last.
    """
    headroom = _headroom_bytes(request, pool)
    scoring = request.scorer is not Scorer.OFF
    return (
        not warm(request, pool),
        pool.busy - pool.snapshot.slots_total,
        1 if headroom is None else -headroom,
        pool.next_token_ms if scoring else 0.0,
        pool.snapshot.pool_id,
    )


def _headroom_bytes(request: PlacementInput, pool: Pool) -> int | None:
    room = pool.kv_room_bytes()
    if room is None:
        return None
    return max(0, room - (kv_needed_bytes(request.spec, pool.snapshot) or 0))


def _no_capacity(exclusions: list[Exclusion]) -> NoCapacity:
    """Tells "never" from "not now", and "nothing fresh" from "all busy"."""
    reasons = [{s.reason for s in e.shortfalls} for e in exclusions]
    feasible = [found for found in reasons if not found & STATIC_REASONS]
    if exclusions and not feasible:
        statics = [
            Exclusion(e.pool_id, tuple(s for s in e.shortfalls if s.reason in STATIC_REASONS))
            for e in exclusions
        ]
        kind, family = NoCapacityKind.INCOMPATIBLE, incompatibility(statics)
        return NoCapacity(kind, tuple(exclusions), family)
    unusable = {ExclusionReason.STALE, ExclusionReason.NOT_READY}
    if all(found & unusable for found in feasible):
        return NoCapacity(NoCapacityKind.NO_FRESH_POOL, tuple(exclusions))
    return NoCapacity(NoCapacityKind.EXHAUSTED, tuple(exclusions))
