"""Why a job waits, in sentences: what keeps it from the pools, how many, and what would help.

Pools that are kept from it by the same thing are told together: of a large fleet nobody reads a
line each. The cause that is the nearest to being over comes first. LO-207.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.feasibility import STATIC_REASONS
from orchestrator_core.core.job import Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.servicers.waiting_words import (
    POOLS_NAMED,
    REMEDIES,
    SHORT,
    Obstacle,
    cut,
    details,
    lack,
    named,
    span,
)
from orchestrator_core.wire.pools import state_reason

# Of the pools with one cause, for programs.
POOL_IDS_TOLD = 8


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that keeps pools from the job; `remedy` is empty where only waiting helps."""

    reason: ExclusionReason
    sentence: str
    remedy: str
    pool_ids: tuple[str, ...]
    pools_total: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job waits: the short answer, what would help with it, and each cause."""

    summary: str
    remedy: str
    causes: tuple[Cause, ...]


NO_WAIT = Waiting("", "", ())


def why_waiting(core: Core, job: Job, lacking: Sequence[Exclusion], now_ms: int) -> Waiting:
    """Says why a queued job waits; `lacking` is what its pools lack. O(pools)."""
    met: dict[Obstacle, list[tuple[Exclusion, str]]] = {}
    for exclusion in lacking:
        pool = core.pools[exclusion.pool_id]
        obstacle, detail = _obstacle(job, pool, exclusion, now_ms)
        met.setdefault(obstacle, []).append((exclusion, detail))
    causes = tuple(
        _cause(core, job, obstacle, met[obstacle]) for obstacle in Obstacle if obstacle in met
    )
    summary, remedy = _summary(core, job, tuple(met), len(lacking), now_ms)
    return Waiting(summary, remedy, causes)


# --- one pool


def _obstacle(job: Job, pool: Pool, exclusion: Exclusion, now_ms: int) -> tuple[Obstacle, str]:
    """What has to be over first for a pool to take the job, and what is to be said about it."""
    lacks = {shortfall.reason: shortfall for shortfall in exclusion.shortfalls}
    found = _lasting_obstacle(job, pool, exclusion) or _state_obstacle(
        pool, now_ms, stale=ExclusionReason.STALE in lacks
    )
    if found is not None:
        return found
    return next(
        (
            (obstacle, tell(lacks[why]))
            for why, (obstacle, tell) in _AT_PRESENT.items()
            if why in lacks
        ),
        (Obstacle.CLOSED, ""),
    )


def _lasting_obstacle(job: Job, pool: Pool, exclusion: Exclusion) -> tuple[Obstacle, str] | None:
    """What keeps this incarnation of a pool from the job for good."""
    snapshot, model_id = pool.snapshot, job.spec.needs.model_id
    if model_id and snapshot.model_id != model_id:
        return Obstacle.OTHER_MODEL, snapshot.model_id or "none yet"
    if job.bound_to is not None and snapshot.replica_set != job.bound_to:
        return Obstacle.OTHER_SET, ""
    lasting = [
        lack(each)
        for each in exclusion.shortfalls
        if each.reason in STATIC_REASONS or _too_large(pool, each)
    ]
    return (Obstacle.LACKS, "; ".join(lasting)) if lasting else None


def _too_large(pool: Pool, shortfall: Shortfall) -> bool:
    """True for keys and values that the pool could not even hold when it is idle."""
    return shortfall.reason is ExclusionReason.KV_ROOM and not pool.could_make_room(
        int(shortfall.required)
    )


def _nothing(_: Shortfall) -> str:
    return ""


def _for_whom(shortfall: Shortfall) -> str:
    return shortfall.offered


def _when(shortfall: Shortfall) -> str:
    told = f"{shortfall.offered} there, and {shortfall.required}"
    return _SPAN.sub(lambda match: span(int(match[1])), told)


_SPAN = re.compile(r"(\d+) ms")
# What a pool that works can lack, the last to be over first.
_AT_PRESENT: Mapping[ExclusionReason, tuple[Obstacle, Callable[[Shortfall], str]]] = {
    ExclusionReason.TRIED: (Obstacle.TRIED, _nothing),
    ExclusionReason.NO_SLOT: (Obstacle.BUSY, _nothing),
    ExclusionReason.KV_ROOM: (Obstacle.ROOM, lack),
    ExclusionReason.RESERVED: (Obstacle.RESERVED, _for_whom),
    ExclusionReason.DECLINED: (Obstacle.DECLINED, _when),
}
_STATES: Mapping[PoolState, Obstacle] = {
    PoolState.STARTING: Obstacle.STARTING,
    PoolState.DRAINING: Obstacle.DRAINING,
    PoolState.UNREADY: Obstacle.UNREADY,
}


def _state_obstacle(pool: Pool, now_ms: int, *, stale: bool) -> tuple[Obstacle, str] | None:
    """What keeps a pool from taking any job at all."""
    snapshot = pool.snapshot
    told = (
        (not pool.connected, Obstacle.AWAY, f"host {snapshot.host_id}"),
        (pool.retired, Obstacle.RETIRED, ""),
        (pool.draining, Obstacle.DRAINED, ""),
        (snapshot.state in _STATES, _STATES.get(snapshot.state), state_reason(pool)),
        (stale, Obstacle.STALE, f"for {span(now_ms - pool.as_of_ms)}"),
        (bool(pool.unconfirmed), Obstacle.UNCONFIRMED, ""),
        (pool.closed_until_ms > now_ms, Obstacle.CLOSED, _again(pool, now_ms)),
    )
    for holds, obstacle, detail in told:
        if holds and obstacle is not None:
            return obstacle, detail
    return None


def _again(pool: Pool, now_ms: int) -> str:
    return f"asked again in {span(pool.closed_until_ms - now_ms)}"


# --- all pools with the same obstacle


def _cause(core: Core, job: Job, obstacle: Obstacle, met: Sequence[tuple[Exclusion, str]]) -> Cause:
    ids = [exclusion.pool_id for exclusion, _ in met]
    by_detail: dict[str, list[str]] = {}
    for exclusion, detail in met:
        by_detail.setdefault(cut(detail), []).append(exclusion.pool_id)
    count = len(ids)
    pools = "1 pool" if count == 1 else f"{count} pools"
    sentence = f"{pools} {obstacle.value}: {details(by_detail)}"
    reason = met[0][0].shortfalls[0].reason
    hosts = sorted({core.pools[pool_id].snapshot.host_id for pool_id in ids})
    remedy = REMEDIES.get(obstacle, "").format(
        model=job.spec.needs.model_id,
        hosts=named(hosts),
        undrain=" or ".join(f"`llorch undrain {each}`" for each in ids[:POOLS_NAMED]),
        longest=span(core.config.decline_max_ms),
    )
    return Cause(reason, sentence, remedy, tuple(ids[:POOL_IDS_TOLD]), count)


# --- the short answer


def _summary(
    core: Core, job: Job, met: Sequence[Obstacle], lacking: int, now_ms: int
) -> tuple[str, str]:
    """The short answer, and what would help where no cause says it."""
    if core.draining:
        return "orchestratord shuts down: the job waits for its next start.", ""
    due_ms = core.hosts_due_ms - now_ms
    if due_ms > 0 and _NOT_FOR_IT.issuperset(met):
        back = (
            "No pool that could serve it is back yet: orchestratord was restarted, and hosts that "
            f"are on their way have {span(due_ms)} more."
        )
        return f"{back}{_place(core, job)}", ""
    if not core.pools:
        remedy = "start pool-managerd on a GPU host, with the address of this orchestratord"
        return f"No pool is registered.{_place(core, job)}", remedy
    if lacking < len(core.pools):
        return f"A slot is free, and offered to jobs before it first.{_place(core, job)}", ""
    nearest = next(each for each in Obstacle if each in met)
    return f"{SHORT[nearest]}.{_place(core, job)}", ""


_NOT_FOR_IT = frozenset({Obstacle.OTHER_SET, Obstacle.LACKS, Obstacle.OTHER_MODEL})


def _place(core: Core, job: Job) -> str:
    position, told = core.position(job), core.forecast(job)
    kind = job.spec.priority.name.lower()
    place = f" It is number {position} in line ({kind})"
    if told.start_ms is None:
        return f"{place}; when it starts is not known."
    return f"{place} and should start in {span(told.start_ms)}."
