"""A second, naive placement, written from design 5.3 and not from the code."""

from dataclasses import dataclass

from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import JobSpec


@dataclass
class Question:
    """One job, some pools, and what else matters."""

    spec: JobSpec
    pools: list[Pool]
    now_ms: int
    stale_after_ms: int
    scoring: bool
    warm_pool_id: str
    tried: frozenset[str]
    reserved: dict[str, str]


def slots_taken(pool: Pool) -> int:
    """The union of own and reported attempts, plus slots that somebody else uses."""
    keys = set(pool.own)
    for key in pool.snapshot.running:
        if key not in pool.ended_at_frame:
            keys.add(key)
    elsewhere = pool.snapshot.slots_total - pool.snapshot.slots_free - len(pool.snapshot.running)
    return len(keys) + (max(0, elsewhere))


def memory_left(pool: Pool) -> int | None:
    """What the host reports, less what it has not seen yet; at most what nobody has claimed."""
    reported = pool.snapshot.kv_free_bytes
    if reported is None:
        reported = pool.snapshot.vram_free_bytes
    if reported is None:
        return None
    for key, attempt in pool.own.items():
        if key not in pool.snapshot.running:
            reported -= attempt.est_kv_bytes
    if pool.room_idle_bytes is not None:
        claimed = sum(attempt.est_kv_bytes for attempt in pool.own.values())
        reported = min(reported, pool.room_idle_bytes - claimed)
    return max(reported, 0)


def eligible(ask: Question, pool: Pool) -> bool:
    """READY, not drained, fresh, connected, with slot and memory, not tried, not kept."""
    snapshot, needs = pool.snapshot, ask.spec.needs
    left = memory_left(pool)
    return (
        snapshot.state is PoolState.READY
        and not pool.draining
        and pool.connected
        and ask.now_ms - pool.as_of_ms <= ask.stale_after_ms
        and slots_taken(pool) < snapshot.slots_total
        and snapshot.model_id == needs.model_id
        and (needs.required_ctx is None or snapshot.ctx_max >= needs.required_ctx)
        and (ask.spec.est_kv_bytes is None or left is None or ask.spec.est_kv_bytes <= left)
        and snapshot.replica_id not in ask.tried
        and snapshot.pool_id not in ask.reserved
        and pool.closed_until_ms <= ask.now_ms
    )


def naive_winner(ask: Question) -> str | None:
    """Narrows the eligible pools down, one rule of design 5.3 after the other."""
    left = [pool for pool in ask.pools if eligible(ask, pool)]
    output_tokens = ask.spec.expected_tokens or 0

    def token_ms(pool: Pool) -> float:
        return pool.rates.token_ms(slots_taken(pool) + 1)

    def end_ms(pool: Pool) -> int:
        return int(pool.rates.first.base + token_ms(pool) * output_tokens)

    def rate(pool: Pool) -> float:
        return -token_ms(pool)

    def warm(pool: Pool) -> bool:
        session = ask.spec.session_id
        served = pool.snapshot.pool_id == ask.warm_pool_id
        return session != "" and (served or session in pool.snapshot.warm_session_ids)

    def headroom(pool: Pool) -> float:
        room = memory_left(pool)
        return float("-inf") if room is None else max(room - (ask.spec.est_kv_bytes or 0), 0)

    rules = [warm, lambda p: p.snapshot.slots_total - slots_taken(p), headroom]
    if ask.scoring:
        rules = [lambda p: -end_ms(p), *rules, rate]
    for rule in rules:
        best = max((rule(pool) for pool in left), default=None)
        left = [pool for pool in left if rule(pool) == best]
    return min((pool.snapshot.pool_id for pool in left), default=None)
