"""What this server can do. ORCH-3095, ORCH-3096."""

from dataclasses import dataclass

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.machine import Core
from orchestrator_core.core.snapshot import PoolSnapshot

API_VERSION = "1.0"
FEATURES = (
    "budgets.job",
    "budgets.session",
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


def capabilities(core: Core, facts: ServerFacts) -> pb.GetCapabilitiesResponse:
    """Describes the server and the replica sets of all registered pools. O(pools)."""
    sets: dict[tuple[str, ...], list[PoolSnapshot]] = {}
    for pool_id in sorted(core.pools):
        snapshot = core.pools[pool_id].snapshot
        sets.setdefault((snapshot.model_id, *snapshot.replica_set), []).append(snapshot)
    return pb.GetCapabilitiesResponse(
        api_version=API_VERSION,
        server_version=facts.version,
        queue_policy=core.config.queue_policy.value,
        limits=pb.Limits(
            queue_capacity=core.config.queue_capacity,
            message_bytes_max=facts.message_bytes_max,
            input_bytes_max=facts.input_bytes_max,
            output_bytes_per_job=facts.output_bytes_per_job,
        ),
        replica_sets=[_replica_set(members) for _, members in sorted(sets.items())],
        features=FEATURES,
    )


def _replica_set(members: list[PoolSnapshot]) -> pb.ReplicaSet:
    first = members[0]
    return pb.ReplicaSet(
        engine=first.engine,
        engine_version=first.engine_version,
        model_id=first.model_id,
        model_digest=first.model_digest,
        sampler_profile_version=first.sampler_profile_version,
        pool_ids=[member.pool_id for member in members],
        slots_total=sum(member.slots_total for member in members),
        ctx_max=max(member.ctx_max for member in members),
        deterministic=all(member.deterministic for member in members),
    )
