"""Snapshots: what cannot be true is refused and named, the rest taken over. LO-203."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState
from orchestrator_core.wire.snapshots import MalformedSnapshot, parse_snapshot
from tests.unit.orchestrator_core.wire.full_snapshot import full_snapshot
from tests.unit.orchestrator_core.wire.messages import messages

Edit = Callable[[snapshot_pb2.PoolSnapshot], object]


def parsed(message: snapshot_pb2.PoolSnapshot) -> PoolSnapshot:
    """The snapshot of a message that must be taken over."""
    snapshot = parse_snapshot(message)
    assert isinstance(snapshot, PoolSnapshot), snapshot
    return snapshot


def test_everything_reported_is_taken_over() -> None:
    """Nothing is lost, and (8, 10) is newer than (8, 9)."""
    assert parsed(full_snapshot()) == PoolSnapshot(
        pool_id="pool",
        replica_id="pool@1",
        host_id="host",
        version=7,
        model_id="model",
        engine="llama.cpp",
        engine_version="b1",
        model_digest="sha256:aa",
        sampler_profile_version="1",
        deterministic=True,
        state=PoolState.DRAINING,
        state_reason="operator",
        state_detail="as you wish",
        slots_total=4,
        slots_free=2,
        ctx_max=8192,
        device_ids=("GPU-a", "GPU-b"),
        compute_capability=(8, 10),
        device_memory_bytes=(24, None),
        tensor_split=(3, 0),
        vram_total_bytes=24,
        vram_free_bytes=24,
        kv_free_bytes=3,
        kv_bytes_per_token=2,
        kv_slot_bytes=1,
        kv_preallocated=True,
        perf_tokens_per_s=50.5,
        first_token_ms=0,
        prefill_tokens_per_s=900.0,
        perf_scale=0.95,
        quantizations=("F16",),
        extensions=("grammar",),
        warm_session_ids=("s",),
        running=(("j", 1), ("j", 2)),
        emitted_frame_seq=11,
    )


def test_what_is_absent_stays_none() -> None:
    """A host without a GPU reports no memory, and that is not zero memory."""
    snapshot = parsed(
        snapshot_pb2.PoolSnapshot(pool_id="p", replica_id="r", host_id="h", slots_total=1)
    )

    assert snapshot.compute_capability is None
    assert snapshot.vram_total_bytes is None
    assert snapshot.vram_free_bytes is None
    assert snapshot.kv_free_bytes is None
    assert snapshot.kv_bytes_per_token is None
    assert snapshot.kv_slot_bytes is None
    assert not snapshot.kv_preallocated
    assert snapshot.tensor_split == ()
    assert snapshot.perf_tokens_per_s is None
    assert snapshot.first_token_ms is None
    assert snapshot.prefill_tokens_per_s is None


@pytest.mark.parametrize("value", [0, 5, 99])
def test_an_unknown_state_is_unready(value: int) -> None:
    """A newer host's state is never taken for READY."""
    message = full_snapshot()
    message.state = value  # type: ignore[assignment]
    message.state_reason = 99  # type: ignore[assignment]

    snapshot = parsed(message)

    assert (snapshot.state, snapshot.state_reason) == (PoolState.UNREADY, "")


def test_a_starting_pool_may_not_know_its_slots() -> None:
    """A pool is listed while its engine loads for the first time."""
    message = snapshot_pb2.PoolSnapshot(
        pool_id="p", replica_id="r", host_id="h", state=snapshot_pb2.POOL_STATE_STARTING
    )

    assert parsed(message).slots_total == 0


def test_a_rate_of_zero_tells_nothing() -> None:
    """Zero tokens per second would make every prediction infinite."""
    message = full_snapshot()
    message.perf_tokens_per_s = message.prefill_tokens_per_s = 0.0

    snapshot = parsed(message)

    assert snapshot.perf_tokens_per_s is None
    assert snapshot.prefill_tokens_per_s is None


def _set(name: str, value: object) -> Edit:
    return lambda message: setattr(message, name, value)


def _ready_without_slots(message: snapshot_pb2.PoolSnapshot) -> None:
    message.Clear()
    message.pool_id = message.replica_id = message.host_id = "x"
    message.state = snapshot_pb2.POOL_STATE_READY


HUGE = 2**63 - 1
BAD: list[tuple[str, Edit]] = [
    *[
        (f"{name} is {HUGE}, which is above", _set(name, HUGE))
        for name in (
            "version",
            "epoch",
            "applied_dispatch_seq",
            "emitted_frame_seq",
            "vram_total_bytes",
            "kv_free_bytes",
            "kv_bytes_per_token",
            "kv_slot_bytes",
            "first_token_ms",
        )
    ],
    *[
        (f"devices[1].{name} is {HUGE}", lambda m, name=name: setattr(m.devices[1], name, HUGE))
        for name in (
            "memory_total_bytes",
            "memory_free_bytes",
            "memory_used_bytes",
            "memory_reserved_bytes",
        )
    ],
    ("running[0].tokens_out is", lambda m: setattr(m.running[0], "tokens_out", HUGE)),
    ("slots_total is 4294967295", _set("slots_total", 2**32 - 1)),
    ("perf_tokens_per_s is 1e-300", _set("perf_tokens_per_s", 1e-300)),
    ("prefill_tokens_per_s is 1e+300", _set("prefill_tokens_per_s", 1e300)),
    ("pool_id is empty", _set("pool_id", "")),
    ("replica_id is empty", _set("replica_id", "")),
    ("host_id is empty", _set("host_id", "")),
    ("pool_id has more than 256", _set("pool_id", "p" * 257)),
    ("model_id has more than 256", _set("model_id", "p" * 257)),
    ("slots_free 5 is above slots_total 4", _set("slots_free", 5)),
    ("slots_total is 0", _ready_without_slots),
    (
        "running has 5 attempts, above slots_total 4",
        lambda m: [m.running.add(job_id="k", attempt=n) for n in range(3)],
    ),
    ("running names an attempt twice", lambda m: m.running.add(job_id="j", attempt=1)),
    ("without job_id", lambda m: m.running.add(attempt=1)),
    ("kv_free_bytes 5 is above that of all slots, 4", _set("kv_free_bytes", 5)),
    ("1 of 2 devices have a tensor_split", lambda m: m.devices[1].ClearField("tensor_split")),
    ("tensor_split is 0 on all devices", lambda m: setattr(m.devices[0], "tensor_split", 0)),
    ("vram_free_bytes 25 is above vram_total_bytes 24", _set("vram_free_bytes", 25)),
    *[
        (f"{name} is", _set(name, value))
        for name in ("perf_tokens_per_s", "prefill_tokens_per_s")
        for value in (math.nan, math.inf, -math.inf, -0.5)
    ],
    *[
        ("kv_cache_usage_ratio is", _set("kv_cache_usage_ratio", value))
        for value in (math.nan, math.inf, -0.01, 1.01)
    ],
    *[
        ("perf_scale is", _set("perf_scale", value))
        for value in (math.nan, math.inf, -0.5, 0.0, 0.009, 1.01)
    ],
    *[
        ("is not MAJOR.MINOR", _set("compute_capability", text))
        for text in ("", "8", "8.", ".6", "8.6.1", "-8.6", "eight", "8.6\n", "٨.٦")
    ],
    ("devices[1].device_id is empty", lambda m: setattr(m.devices[1], "device_id", "")),
    (
        "devices[0].utilization_ratio",
        lambda m: setattr(m.devices[0], "utilization_ratio", math.nan),
    ),
    ("devices[0].memory_free_bytes", lambda m: setattr(m.devices[0], "memory_free_bytes", 25)),
    ("devices has more", lambda m: [m.devices.add(device_id="x") for _ in range(63)]),
    ("warm_session_ids has more", lambda m: m.warm_session_ids.extend(["x"] * 64)),
    ("supports.extensions has more", lambda m: m.supports.extensions.extend(["x"] * 256)),
]


@pytest.mark.parametrize(("said", "edit"), BAD)
def test_a_snapshot_that_cannot_be_true_is_refused_and_named(said: str, edit: Edit) -> None:
    """The refusal names the pool and the field."""
    message = full_snapshot()
    edit(message)

    refused = parse_snapshot(message)

    assert isinstance(refused, MalformedSnapshot)
    assert refused.pool_id == message.pool_id[:256]
    assert said in refused.reason


@settings(max_examples=200, deadline=None)
@given(messages(snapshot_pb2.PoolSnapshot, depth=2))
def test_whatever_passes_is_usable(message: snapshot_pb2.PoolSnapshot) -> None:
    """Nothing makes it raise, and a parsed snapshot holds what the core relies on."""
    snapshot = parse_snapshot(message)

    if isinstance(snapshot, MalformedSnapshot):
        assert snapshot.reason
        return
    assert snapshot.pool_id
    assert 0.01 <= snapshot.perf_scale <= 1.0
    assert 0 <= snapshot.slots_free <= snapshot.slots_total
    assert len(set(snapshot.running)) == len(snapshot.running) <= snapshot.slots_total
    for rate in (snapshot.perf_tokens_per_s, snapshot.prefill_tokens_per_s):
        assert rate is None or 0 < rate < math.inf
