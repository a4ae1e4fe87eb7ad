# SPDX-License-Identifier: Apache-2.0
"""Protos of pools, and of what a server can do and does, to the client's model."""

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2, pool_admin_service_pb2
from llamaorch_client import model, model_fleet, wire
from llamaorch_client.request import Priority


def overview(message: orchestrator_service_pb2.GetOverviewResponse) -> model.Overview:
    """What happens on a server."""
    return model.Overview(
        queues=tuple(
            model.QueueView(
                priority=wire.enum(Priority, job_pb2.DESCRIPTOR, queue.priority),
                waiting=queue.waiting,
                next=tuple(wire.job(item) for item in queue.next),
                last_predicted_start_ms=(
                    queue.last_predicted_start_ms
                    if queue.HasField("last_predicted_start_ms")
                    else None
                ),
            )
            for queue in message.queues
        ),
        queue_capacity=message.queue_capacity,
        running=tuple(wire.job(item) for item in message.running),
        running_total=message.running_total,
        decisions=tuple(wire.decision(item) for item in message.decisions),
        ended=tuple(wire.job(item) for item in message.ended),
        ended_total=message.ended_total,
        draining=message.draining,
        store_unavailable=message.store_unavailable,
        observed_at=wire.instant(message.observed_at, message.HasField("observed_at")),
    )


def _device(message: pool_admin_service_pb2.PoolDevice) -> model_fleet.PoolDevice:
    return model_fleet.PoolDevice(
        device_id=message.device_id,
        name=message.name,
        memory_total_bytes=(
            message.memory_total_bytes if message.HasField("memory_total_bytes") else None
        ),
        memory_used_bytes=(
            message.memory_used_bytes if message.HasField("memory_used_bytes") else None
        ),
        utilization_ratio=(
            message.utilization_ratio if message.HasField("utilization_ratio") else None
        ),
        temperature_celsius=(
            message.temperature_celsius if message.HasField("temperature_celsius") else None
        ),
        health=message.health,
        health_detail=message.health_detail,
    )


def pool(message: pool_admin_service_pb2.Pool) -> model_fleet.Pool:
    """One pool."""
    return model_fleet.Pool(
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        host_id=message.host_id,
        connected=message.connected,
        state=message.state,
        state_reason=message.state_reason,
        engine=message.engine,
        engine_version=message.engine_version,
        model_id=message.model_id,
        model_digest=message.model_digest,
        slots_total=message.slots_total,
        slots_free=message.slots_free,
        ctx_max=message.ctx_max,
        snapshot_age_ms=message.snapshot_age_ms,
        snapshot_version=message.snapshot_version,
        devices=tuple(_device(item) for item in message.devices),
        tokens_per_s=message.tokens_per_s if message.HasField("tokens_per_s") else None,
        perf_scale=message.perf_scale if message.HasField("perf_scale") else 1.0,
        drain=_drain(message.drain) if message.HasField("drain") else None,
    )


def reloaded(message: pool_admin_service_pb2.ReloadPoolResponse) -> model_fleet.Reloaded:
    """A pool after a reload."""
    return model_fleet.Reloaded(
        pool=pool(message.pool),
        outcome=wire.enum(
            model_fleet.ReloadOutcome, pool_admin_service_pb2.DESCRIPTOR, message.outcome
        ),
        detail=message.detail,
    )


def _drain(message: pool_admin_service_pb2.PoolDrain) -> model_fleet.PoolDrain:
    return model_fleet.PoolDrain(
        began_at=wire.instant(message.began_at, message.HasField("began_at")),
        until=wire.instant(message.until, message.HasField("until")),
        running_attempts=message.running_attempts,
    )


def capabilities(
    message: orchestrator_service_pb2.GetCapabilitiesResponse,
) -> model_fleet.Capabilities:
    """What a server can do."""
    return model_fleet.Capabilities(
        api_version=message.api_version,
        server_version=message.server_version,
        queue_policy=message.queue_policy,
        limits=model_fleet.Limits(
            queue_capacity=message.limits.queue_capacity,
            message_bytes_max=message.limits.message_bytes_max,
            input_bytes_max=message.limits.input_bytes_max,
            output_bytes_per_job=message.limits.output_bytes_per_job,
            queue_timeout_ms=message.limits.queue_timeout_ms,
            wall_timeout_ms=message.limits.wall_timeout_ms,
            idle_timeout_ms=message.limits.idle_timeout_ms,
            retention_ms=message.limits.retention_ms,
            idempotency_ttl_ms=message.limits.idempotency_ttl_ms,
            session_ttl_ms=message.limits.session_ttl_ms,
            session_turns_max=message.limits.session_turns_max,
            requests_per_min=message.limits.requests_per_min,
            tokens_per_min=message.limits.tokens_per_min,
            queued_jobs=message.limits.queued_jobs,
            streams_per_connection_max=message.limits.streams_per_connection_max,
            exchange_jobs_max=message.limits.exchange_jobs_max,
            artifact_input_bytes_max=message.limits.artifact_input_bytes_max,
        ),
        replica_sets=tuple(
            model_fleet.ReplicaSet(
                engine=item.engine,
                engine_version=item.engine_version,
                model_id=item.model_id,
                model_digest=item.model_digest,
                sampler_profile_version=item.sampler_profile_version,
                pool_ids=tuple(item.pool_ids),
                slots_total=item.slots_total,
                ctx_max=item.ctx_max,
                deterministic=item.deterministic,
                slots_ready=item.slots_ready,
                ctx_min=item.ctx_min,
                extensions=tuple(item.extensions),
                quantizations=tuple(item.quantizations),
            )
            for item in message.replica_sets
        ),
        features=tuple(message.features),
        replica_sets_omitted=message.replica_sets_omitted,
    )
