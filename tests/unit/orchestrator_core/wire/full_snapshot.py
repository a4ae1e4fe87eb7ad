"""A snapshot with everything reported."""

from llamaorch.pool.v1 import snapshot_pb2


def full_snapshot() -> snapshot_pb2.PoolSnapshot:
    """A snapshot with everything reported."""
    message = snapshot_pb2.PoolSnapshot(
        pool_id="pool",
        replica_id="pool@1",
        host_id="host",
        version=7,
        emitted_frame_seq=11,
        engine="llama.cpp",
        engine_version="b1",
        model_id="model",
        model_digest="sha256:aa",
        sampler_profile_version="1",
        deterministic=True,
        state=snapshot_pb2.POOL_STATE_DRAINING,
        state_reason=snapshot_pb2.POOL_STATE_REASON_OPERATOR,
        state_detail="as you wish",
        slots_total=4,
        slots_free=2,
        ctx_max=8192,
        compute_capability="8.10",
        vram_total_bytes=24,
        vram_free_bytes=24,
        kv_free_bytes=3,
        kv_cache_usage_ratio=1.0,
        perf_tokens_per_s=50.5,
        first_token_ms=0,
        prefill_tokens_per_s=900.0,
        perf_scale=0.95,
        kv_bytes_per_token=2,
        kv_slot_bytes=1,
        kv_preallocated=True,
        warm_session_ids=["s"],
    )
    message.supports.quantizations.append("F16")
    message.supports.extensions.append("grammar")
    message.devices.add(
        device_id="GPU-a", utilization_ratio=0.5, memory_total_bytes=24, tensor_split=3
    )
    message.devices.add(device_id="GPU-b", tensor_split=0)
    message.running.add(job_id="j", attempt=1)
    message.running.add(job_id="j", attempt=2)
    return message
