"""Snapshots of pools: what is malformed is refused and named, never repaired. LO-203."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.wire.enums import pool_state_from_wire, state_reason_from_wire
from orchestrator_core.wire.plausible import (
    COUNT_MAX,
    MEMORY_BYTES_MAX,
    RATE_MAX,
    RATE_MIN,
    SLOTS_MAX,
    TIME_MS_MAX,
    too_large,
)

_COMPUTE_CAP = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")

ID_CHARS_MAX = 256
DETAIL_CHARS_MAX = 1_000
DEVICES_MAX = 64
WARM_SESSIONS_MAX = 64
SUPPORTS_MAX = 256
PERF_SCALE_MIN = 0.01


@dataclass(frozen=True, slots=True)
class MalformedSnapshot:
    """A snapshot that cannot be true. `reason` names the field."""

    pool_id: str
    reason: str


def parse_snapshot(
    message: snapshot_pb2.PoolSnapshot, host_id: str | None = None
) -> PoolSnapshot | MalformedSnapshot:
    """Checks a snapshot and returns it, or says what is wrong with it. Never raises.

    With `host_id`, a snapshot in another host's name is refused too.

    What the host does not report stays None. A rate of 0 tells nothing about a pool and counts as
    not reported. A pool that cannot take work yet may not know its slots.
    """
    for check in _CHECKS:
        for reason in check(message):
            return MalformedSnapshot(message.pool_id[:ID_CHARS_MAX], reason)
    if host_id is not None and message.host_id != host_id:
        reason = f"host_id {message.host_id!r} is not that of the stream, {host_id!r}"
        return MalformedSnapshot(message.pool_id, reason)
    return _snapshot(message)


def _bad_ids(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    for name in ("pool_id", "replica_id", "host_id"):
        value = getattr(message, name)
        if not value:
            yield f"{name} is empty"
        if len(value) > ID_CHARS_MAX:
            yield f"{name} has more than {ID_CHARS_MAX} characters"
    for name in ("model_id", "engine", "engine_version", "model_digest", "sampler_profile_version"):
        if len(getattr(message, name)) > ID_CHARS_MAX:
            yield f"{name} has more than {ID_CHARS_MAX} characters"


def _bad_slots(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    total, free = message.slots_total, message.slots_free
    if free > total:
        yield f"slots_free {free} is above slots_total {total}"
    if total == 0 and message.state == snapshot_pb2.POOL_STATE_READY:
        yield "slots_total is 0 in a pool that is READY"
    if len(message.running) > total:
        yield f"running has {len(message.running)} attempts, above slots_total {total}"
    keys = {(attempt.job_id, attempt.attempt) for attempt in message.running}
    if len(keys) != len(message.running):
        yield "running names an attempt twice"
    if any(not attempt.job_id for attempt in message.running):
        yield "running has an attempt without job_id"


def _bad_memory(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    if (
        message.HasField("vram_total_bytes")
        and message.HasField("vram_free_bytes")
        and message.vram_free_bytes > message.vram_total_bytes
    ):
        yield (
            f"vram_free_bytes {message.vram_free_bytes} is above"
            f" vram_total_bytes {message.vram_total_bytes}"
        )
    all_slots_bytes = message.slots_total * message.kv_slot_bytes
    if (
        message.kv_preallocated
        and message.HasField("kv_slot_bytes")
        and message.kv_free_bytes > all_slots_bytes
    ):
        yield f"kv_free_bytes {message.kv_free_bytes} is above that of all slots, {all_slots_bytes}"


def _bad_numbers(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    for name in ("perf_tokens_per_s", "prefill_tokens_per_s"):
        value = getattr(message, name)
        if not math.isfinite(value) or value < 0:
            yield f"{name} is {value:g}, must be finite and not negative"
        elif value and not RATE_MIN <= value <= RATE_MAX:
            yield f"{name} is {value:g}, must be 0 or from {RATE_MIN:g} to {RATE_MAX:g}"
    if message.HasField("perf_scale") and not PERF_SCALE_MIN <= message.perf_scale <= 1.0:
        yield f"perf_scale is {message.perf_scale:g}, must be in [{PERF_SCALE_MIN}, 1]"
    if not _is_ratio(message.kv_cache_usage_ratio):
        yield f"kv_cache_usage_ratio is {message.kv_cache_usage_ratio:g}, must be in [0, 1]"
    if message.HasField("compute_capability"):
        text = message.compute_capability
        if _COMPUTE_CAP.fullmatch(text) is None:
            yield f"compute_capability {text[:32]!r} is not MAJOR.MINOR"


def _bad_sizes(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    yield from too_large(message, _COUNTS, COUNT_MAX)
    yield from too_large(message, _MEMORY, MEMORY_BYTES_MAX)
    yield from too_large(message, ("first_token_ms",), TIME_MS_MAX)
    yield from too_large(message, ("slots_total",), SLOTS_MAX)
    for index, device in enumerate(message.devices):
        yield from too_large(device, _DEVICE_MEMORY, MEMORY_BYTES_MAX, f"devices[{index}].")
    for index, attempt in enumerate(message.running):
        yield from too_large(attempt, ("tokens_out",), COUNT_MAX, f"running[{index}].")


def _bad_devices(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    if len(message.devices) > DEVICES_MAX:
        yield f"devices has more than {DEVICES_MAX} entries"
    for index, device in enumerate(message.devices):
        if not device.device_id:
            yield f"devices[{index}].device_id is empty"
        if not _is_ratio(device.utilization_ratio):
            yield f"devices[{index}].utilization_ratio is not in [0, 1]"
        total_bytes = device.memory_total_bytes
        if device.HasField("memory_total_bytes") and device.memory_free_bytes > total_bytes:
            yield f"devices[{index}].memory_free_bytes is above its memory_total_bytes"


def _bad_split(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    stated = [device.tensor_split for device in message.devices if _has_split(device)]
    if stated and len(stated) < len(message.devices):
        yield f"{len(stated)} of {len(message.devices)} devices have a tensor_split"
    if stated and not sum(stated):
        yield "tensor_split is 0 on all devices"


def _bad_lists(message: snapshot_pb2.PoolSnapshot) -> Iterable[str]:
    if len(message.warm_session_ids) > WARM_SESSIONS_MAX:
        yield f"warm_session_ids has more than {WARM_SESSIONS_MAX} entries"
    for name in ("quantizations", "extensions"):
        if len(getattr(message.supports, name)) > SUPPORTS_MAX:
            yield f"supports.{name} has more than {SUPPORTS_MAX} entries"


_COUNTS = ("version", "epoch", "applied_dispatch_seq", "emitted_frame_seq")
_MEMORY = (
    "vram_total_bytes",
    "vram_free_bytes",
    "kv_free_bytes",
    "kv_bytes_per_token",
    "kv_slot_bytes",
)
_DEVICE_MEMORY = (
    "memory_total_bytes",
    "memory_free_bytes",
    "memory_used_bytes",
    "memory_reserved_bytes",
)

_CHECKS: tuple[Callable[[snapshot_pb2.PoolSnapshot], Iterable[str]], ...] = (
    _bad_ids,
    _bad_sizes,
    _bad_slots,
    _bad_memory,
    _bad_numbers,
    _bad_devices,
    _bad_split,
    _bad_lists,
)


def _is_ratio(value: float) -> bool:
    # An absent ratio reads as 0; comparisons with NaN are false.
    return 0.0 <= value <= 1.0


def _snapshot(message: snapshot_pb2.PoolSnapshot) -> PoolSnapshot:
    return PoolSnapshot(
        pool_id=message.pool_id,
        replica_id=message.replica_id,
        host_id=message.host_id,
        version=message.version,
        model_id=message.model_id,
        engine=message.engine,
        engine_version=message.engine_version,
        model_digest=message.model_digest,
        sampler_profile_version=message.sampler_profile_version,
        deterministic=message.deterministic,
        state=pool_state_from_wire(message.state),
        state_reason=state_reason_from_wire(message.state_reason),
        state_detail=message.state_detail[:DETAIL_CHARS_MAX],
        slots_total=message.slots_total,
        slots_free=message.slots_free,
        ctx_max=message.ctx_max,
        device_ids=tuple(device.device_id for device in message.devices),
        compute_capability=_capability(message),
        device_memory_bytes=tuple(
            device.memory_total_bytes if device.HasField("memory_total_bytes") else None
            for device in message.devices
        ),
        tensor_split=_tensor_split(message),
        vram_total_bytes=_optional_int(message, "vram_total_bytes"),
        vram_free_bytes=_optional_int(message, "vram_free_bytes"),
        kv_free_bytes=_optional_int(message, "kv_free_bytes"),
        kv_bytes_per_token=_optional_int(message, "kv_bytes_per_token"),
        kv_slot_bytes=_optional_int(message, "kv_slot_bytes"),
        kv_preallocated=message.kv_preallocated,
        perf_tokens_per_s=message.perf_tokens_per_s or None,
        first_token_ms=_optional_int(message, "first_token_ms"),
        prefill_tokens_per_s=message.prefill_tokens_per_s or None,
        perf_scale=message.perf_scale if message.HasField("perf_scale") else 1.0,
        quantizations=tuple(message.supports.quantizations),
        extensions=tuple(message.supports.extensions),
        warm_session_ids=tuple(message.warm_session_ids),
        running=tuple((attempt.job_id, attempt.attempt) for attempt in message.running),
        emitted_frame_seq=message.emitted_frame_seq,
    )


def _capability(message: snapshot_pb2.PoolSnapshot) -> tuple[int, int] | None:
    if not message.HasField("compute_capability"):
        return None
    major, minor = message.compute_capability.split(".")
    return int(major), int(minor)


def _tensor_split(message: snapshot_pb2.PoolSnapshot) -> tuple[int, ...]:
    return tuple(device.tensor_split for device in message.devices if _has_split(device))


def _has_split(device: snapshot_pb2.Device) -> bool:
    return device.HasField("tensor_split")


def _optional_int(message: snapshot_pb2.PoolSnapshot, name: str) -> int | None:
    present = message.HasField(name)  # type: ignore[arg-type]  # the stubs list literal names only
    value: int = getattr(message, name)
    return value if present else None
