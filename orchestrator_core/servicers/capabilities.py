"""What this server can do. ORCH-3095, ORCH-3096."""

from dataclasses import dataclass

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.machine import Core
from orchestrator_core.core.placement import pool_shortfalls
from orchestrator_core.core.pool import Pool
from orchestrator_core.servicers.exchange_session import ExchangeLimits
from orchestrator_core.servicers.paging import fitting

API_VERSION = "1.0"
FEATURES = (
    "artifacts",
    "artifacts.input",
    "budgets.job",
    "budgets.session",
    "catalog",
    "exchange",
    "failover.continue",
    "failover.verified_replay",
    "on_disconnect.cancel",
    "overview",
    "policy.outbound",
    "pools.drain",
    "pools.reload",
    "pools.watch",
    "resume",
    "sessions",
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Bounds that the core does not know."""

    version: str
    message_bytes_max: int
    input_bytes_max: int
    output_bytes_per_job: int
    streams_per_connection_max: int = 0
    artifact_input_bytes_max: int = 0


def capabilities(
    core: Core, facts: ServerFacts, identity: str, now_ms: int
) -> pb.GetCapabilitiesResponse:
    """Describes the server, as a client sees it, and the replica sets of all pools. O(pools).

    Sets that take work at this moment go before others where not all fit into a message.
    """
    sets: dict[tuple[str, ...], list[Pool]] = {}
    for pool_id in sorted(core.pools):
        pool = core.pools[pool_id]
        key = (pool.snapshot.model_id, *pool.snapshot.replica_set)
        sets.setdefault(key, []).append(pool)
    stale_after_ms = core.config.stale_after_ms
    told = {key: _replica_set(pools, now_ms, stale_after_ms) for key, pools in sorted(sets.items())}
    ready_first = sorted(told, key=lambda key: told[key].slots_ready == 0)
    count = len(fitting(told[key] for key in ready_first))
    return pb.GetCapabilitiesResponse(
        api_version=API_VERSION,
        server_version=facts.version,
        queue_policy=core.config.queue_policy.value,
        limits=_limits(core.config, facts, identity),
        replica_sets=[told[key] for key in sorted(ready_first[:count])],
        replica_sets_omitted=len(told) - count,
        features=FEATURES,
    )


def _limits(config: CoreConfig, facts: ServerFacts, identity: str) -> pb.Limits:
    own = config.throttle.limits(identity)
    return pb.Limits(
        queue_capacity=config.queue_capacity,
        message_bytes_max=facts.message_bytes_max,
        input_bytes_max=facts.input_bytes_max,
        output_bytes_per_job=facts.output_bytes_per_job,
        queue_timeout_ms=config.queue_timeout_ms,
        wall_timeout_ms=config.wall_timeout_ms,
        idle_timeout_ms=config.idle_timeout_ms,
        retention_ms=config.retention_ms,
        idempotency_ttl_ms=config.idempotency_ttl_ms,
        session_ttl_ms=config.session_ttl_ms,
        session_turns_max=config.session_turns_max,
        requests_per_min=own.requests_per_min,
        tokens_per_min=own.tokens_per_min,
        queued_jobs=own.queued_jobs,
        streams_per_connection_max=facts.streams_per_connection_max,
        exchange_jobs_max=ExchangeLimits().handles_max,
        artifact_input_bytes_max=facts.artifact_input_bytes_max,
    )


def _replica_set(pools: list[Pool], now_ms: int, stale_after_ms: int) -> pb.ReplicaSet:
    members = [pool.snapshot for pool in pools]
    first = members[0]
    return pb.ReplicaSet(
        engine=first.engine,
        engine_version=first.engine_version,
        model_id=first.model_id,
        model_digest=first.model_digest,
        sampler_profile_version=first.sampler_profile_version,
        pool_ids=[member.pool_id for member in members],
        slots_total=sum(member.slots_total for member in members),
        slots_ready=sum(
            pool.snapshot.slots_total for pool in pools if _takes_work(pool, now_ms, stale_after_ms)
        ),
        ctx_min=min(member.ctx_max for member in members),
        ctx_max=max(member.ctx_max for member in members),
        deterministic=all(member.deterministic for member in members),
        extensions=_common([member.extensions for member in members]),
        quantizations=_common([member.quantizations for member in members]),
    )


def _takes_work(pool: Pool, now_ms: int, stale_after_ms: int) -> bool:
    """Whether the pool starts jobs at this moment, or as soon as one of its own ends."""
    found = pool_shortfalls(pool, now_ms, stale_after_ms)
    return all(shortfall.reason is ExclusionReason.NO_SLOT for shortfall in found)


def _common(offers: list[tuple[str, ...]]) -> list[str]:
    return sorted(set(offers[0]).intersection(*offers[1:]))
