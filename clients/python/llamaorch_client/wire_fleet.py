# SPDX-License-Identifier: Apache-2.0
"""Protos of pools and of the state of a server to the client's model."""

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2, pool_admin_service_pb2
from llamaorch_client import model, wire
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


def _device(message: pool_admin_service_pb2.PoolDevice) -> model.PoolDevice:
    return model.PoolDevice(
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


def pool(message: pool_admin_service_pb2.Pool) -> model.Pool:
    """One pool."""
    return model.Pool(
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


def reloaded(message: pool_admin_service_pb2.ReloadPoolResponse) -> model.Reloaded:
    """A pool after a reload."""
    return model.Reloaded(
        pool=pool(message.pool),
        outcome=wire.enum(model.ReloadOutcome, pool_admin_service_pb2.DESCRIPTOR, message.outcome),
        detail=message.detail,
    )


def _drain(message: pool_admin_service_pb2.PoolDrain) -> model.PoolDrain:
    return model.PoolDrain(
        began_at=wire.instant(message.began_at, message.HasField("began_at")),
        until=wire.instant(message.until, message.HasField("until")),
        running_attempts=message.running_attempts,
    )
