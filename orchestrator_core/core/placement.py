"""Placement: filter, score, pick. One pass over the feasible pools. LO-202, ORCH-3012.

The score is the predicted end in integer milliseconds. Ties go, in order, to: warm keys and values
for the session; more free slots; more memory left; higher decode rate; the lexicographically least
pool id. With performance scoring off the score is 0 and the decode rate does not count.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator_core.core.decision import (
    CANDIDATES_KEPT,
    EXCLUSIONS_KEPT,
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Shortfall,
)
from orchestrator_core.core.feasibility import incompatibility, static_shortfalls
from orchestrator_core.core.job import JobSpec
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.pool import Pool, PoolState
from orchestrator_core.core.prediction import Predictor


@dataclass(frozen=True, slots=True)
class PlacementInput:
    """Everything that one placement looks at.

    `pools` are the pools to consider; with `check_static` the static filter runs on them too,
    without it they are known to be feasible. `reserved` maps pools that are kept for an older job
    to that job. `complete` lifts the limits of the record.
    """

    spec: JobSpec
    attempt: int
    now_ms: int
    waited_ms: int
    pools: Iterable[Pool]
    predictor: Predictor
    stale_after_ms: int
    scoring: bool = True
    check_static: bool = True
    warm_pool_id: str = ""
    tried_replicas: frozenset[str] = frozenset()
    reserved: Mapping[str, str] | None = None
    complete: bool = False


class NoCapacityKind(enum.Enum):
    """Why no pool can take the job now."""

    INCOMPATIBLE = "incompatible"
    EXHAUSTED = "exhausted"
    NO_FRESH_POOL = "no_fresh_pool"


@dataclass(frozen=True, slots=True)
class Assigned:
    """The job goes to `decision.pool_id`."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """No pool can take it now; `incompatible` names the family when none ever can."""

    kind: NoCapacityKind
    exclusions: tuple[Exclusion, ...]
    incompatible: Reason | None = None


_STATIC = frozenset(list(ExclusionReason)[:9])


def place(request: PlacementInput) -> Assigned | NoCapacity:
    """Decides where one job goes. O(pools)."""
    candidates: list[Candidate] = []
    exclusions: list[Exclusion] = []
    for pool in request.pools:
        shortfalls = _shortfalls(request, pool)
        if shortfalls:
            exclusions.append(Exclusion(pool.snapshot.pool_id, shortfalls))
        else:
            candidates.append(_score(request, pool))
    if not candidates:
        return _no_capacity(exclusions)
    return Assigned(_pick(request, candidates, exclusions))


def pool_shortfalls(pool: Pool, now_ms: int, stale_after_ms: int) -> tuple[Shortfall, ...]:
    """Returns why a pool can take no job at all at this moment; empty means it can."""
    snapshot = pool.snapshot
    found: list[Shortfall] = []
    if snapshot.state is not PoolState.READY:
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", snapshot.state.value))
    if not pool.fresh(now_ms, stale_after_ms):
        age = f"{now_ms - pool.as_of_ms} ms" if pool.connected else "not connected"
        found.append(Shortfall(ExclusionReason.STALE, f"{stale_after_ms} ms", age))
    if pool.slots_free() == 0:
        found.append(Shortfall(ExclusionReason.NO_SLOT, "1", "0"))
    if pool.closed_until_ms > now_ms:
        wait = f"refused, closed for {pool.closed_until_ms - now_ms} ms"
        found.append(Shortfall(ExclusionReason.NOT_READY, "ready", wait))
    return tuple(found)


def dynamic_shortfalls(request: PlacementInput, pool: Pool) -> tuple[Shortfall, ...]:
    """Returns why a feasible pool cannot take the job at this moment; empty means it can."""
    snapshot = pool.snapshot
    found = list(pool_shortfalls(pool, request.now_ms, request.stale_after_ms))
    if snapshot.replica_id in request.tried_replicas:
        found.append(Shortfall(ExclusionReason.TRIED, "another replica", snapshot.replica_id))
    needed, room = request.spec.est_kv_bytes, pool.kv_room_bytes()
    if needed is not None and room is not None and needed > room:
        found.append(Shortfall(ExclusionReason.KV_ROOM, str(needed), str(room)))
    if request.reserved and snapshot.pool_id in request.reserved:
        older = request.reserved[snapshot.pool_id]
        found.append(Shortfall(ExclusionReason.RESERVED, "unreserved", f"kept for {older}"))
    return tuple(found)


def _shortfalls(request: PlacementInput, pool: Pool) -> tuple[Shortfall, ...]:
    if request.check_static:
        static = static_shortfalls(request.spec.needs, pool.snapshot)
        return static + dynamic_shortfalls(request, pool)
    return dynamic_shortfalls(request, pool)


def _score(request: PlacementInput, pool: Pool) -> Candidate:
    snapshot = pool.snapshot
    free = pool.slots_free()
    estimate = request.predictor.estimate(request.spec, snapshot, pool.occupied() + 1)
    session = request.spec.session_id
    room = pool.kv_room_bytes()
    headroom = None if room is None else max(0, room - (request.spec.est_kv_bytes or 0))
    return Candidate(
        pool_id=snapshot.pool_id,
        replica_id=snapshot.replica_id,
        predicted_end_ms=estimate.first_token_ms + estimate.decode_ms if request.scoring else 0,
        first_token_ms=estimate.first_token_ms,
        decode_ms=estimate.decode_ms,
        kv_warm=bool(session)
        and (request.warm_pool_id == snapshot.pool_id or session in snapshot.warm_session_ids),
        slots_free=free,
        vram_headroom_bytes=headroom,
        tokens_per_s=estimate.tokens_per_s,
        snapshot_version=snapshot.version,
        snapshot_age_ms=max(0, request.now_ms - pool.as_of_ms),
    )


_TIE_BREAKS = ("score", "warm_kv", "slots_free", "vram_headroom", "tokens_per_s", "pool_id")


def _order(candidate: Candidate, *, scoring: bool) -> tuple[int, bool, int, int, float, str]:
    """Sort key, least first, in the order of `_TIE_BREAKS`. Memory that is not known ranks last."""
    headroom = candidate.vram_headroom_bytes
    return (
        candidate.predicted_end_ms,
        not candidate.kv_warm,
        -candidate.slots_free,
        1 if headroom is None else -headroom,
        -candidate.tokens_per_s if scoring else 0.0,
        candidate.pool_id,
    )


def _pick(
    request: PlacementInput, candidates: list[Candidate], exclusions: list[Exclusion]
) -> Decision:
    ranked = sorted(candidates, key=lambda c: _order(c, scoring=request.scoring))
    exclusions.sort(key=lambda e: e.pool_id)
    winner = ranked[0]
    decided_by = "only_candidate"
    if len(ranked) > 1:
        first, second = (_order(c, scoring=request.scoring) for c in ranked[:2])
        decided_by = next(
            name for name, a, b in zip(_TIE_BREAKS, first, second, strict=True) if a != b
        )
    return Decision(
        job_id=request.spec.job_id,
        attempt=request.attempt,
        decided_ms=request.now_ms,
        pool_id=winner.pool_id,
        decided_by=decided_by,
        candidates=tuple(ranked[: None if request.complete else CANDIDATES_KEPT]),
        candidates_total=len(ranked),
        exclusions=tuple(exclusions[: None if request.complete else EXCLUSIONS_KEPT]),
        exclusions_total=len(exclusions),
        waited_ms=request.waited_ms,
    )


def _no_capacity(exclusions: list[Exclusion]) -> NoCapacity:
    """Tells "never" from "not now", and "nothing fresh" from "all busy"."""
    exclusions.sort(key=lambda e: e.pool_id)
    reasons = [{s.reason for s in e.shortfalls} for e in exclusions]
    feasible = [found for found in reasons if not found & _STATIC]
    if exclusions and not feasible:
        statics = [
            Exclusion(e.pool_id, tuple(s for s in e.shortfalls if s.reason in _STATIC))
            for e in exclusions
        ]
        kind, family = NoCapacityKind.INCOMPATIBLE, incompatibility(statics)
        return NoCapacity(kind, tuple(exclusions), family)
    unusable = {ExclusionReason.STALE, ExclusionReason.NOT_READY}
    if all(found & unusable for found in feasible):
        return NoCapacity(NoCapacityKind.NO_FRESH_POOL, tuple(exclusions))
    return NoCapacity(NoCapacityKind.EXHAUSTED, tuple(exclusions))
