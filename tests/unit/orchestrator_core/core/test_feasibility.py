"""What a pool lacks for good, as data. LO-201, LO-205, ORCH-3011, ORCH-3046, ORCH-3052."""

from dataclasses import replace

import pytest

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.feasibility import (
    STATIC_REASONS,
    incompatibility,
    kv_needed_bytes,
    kv_shortfalls,
    lasting_shortfalls,
    static_shortfalls,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Needs
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench
from tests.unit.orchestrator_core.core.build import snapshot, spec

POOL = snapshot(
    model_id="m",
    engine="e",
    engine_version="1",
    model_digest="d",
    sampler_profile_version="s",
    deterministic=True,
    device_ids=("gpu0", "gpu1"),
    vram_total_bytes=8,
    compute_capability=(8, 9),
    quantizations=("q4", "q8"),
    extensions=("grammar",),
    ctx_max=4096,
)
MET = Needs(
    model_id="m",
    engine="e",
    engine_version="1",
    model_digest="d",
    sampler_profile_version="s",
    deterministic=True,
    min_vram_bytes=8,
    quantization="q4",
    min_compute_cap=(8, 9),
    required_extensions=("grammar",),
    device_mask=("gpu0", "gpu1", "gpu2"),
    required_ctx=4096,
)
# As a host reports a pool whose model it loads for the first time.
LOADING = snapshot(
    model_id="m",
    engine="",
    state=PoolState.STARTING,
    slots_total=0,
    slots_free=0,
    ctx_max=0,
    device_ids=("gpu0", "gpu1"),
    vram_total_bytes=8,
    compute_capability=(8, 9),
)
ONE_TOO_MUCH = [
    ("model_id", "x", ExclusionReason.MODEL),
    ("model_digest", "x", ExclusionReason.MODEL),
    ("engine", "x", ExclusionReason.ENGINE),
    ("engine_version", "x", ExclusionReason.ENGINE),
    ("sampler_profile_version", "x", ExclusionReason.ENGINE),
    ("min_vram_bytes", 9, ExclusionReason.VRAM_TOTAL),
    ("quantization", "q5", ExclusionReason.QUANTIZATION),
    ("min_compute_cap", (8, 10), ExclusionReason.COMPUTE_CAP),
    ("required_extensions", ("grammar", "vision"), ExclusionReason.EXTENSION),
    ("device_mask", ("gpu0",), ExclusionReason.DEVICE_MASK),
    ("required_ctx", 4097, ExclusionReason.CONTEXT),
]


def test_what_is_met_leaves_no_shortfall() -> None:
    """Every need at its limit is still met, and no need restricts nothing."""
    assert static_shortfalls(MET, POOL) == ()
    assert static_shortfalls(Needs("m"), snapshot()) == ()


@pytest.mark.parametrize(("name", "value", "reason"), ONE_TOO_MUCH)
def test_each_need_excludes_on_its_own(name: str, value: object, reason: ExclusionReason) -> None:
    """One step beyond what the pool offers is one shortfall of that kind."""
    found = static_shortfalls(replace(MET, **{name: value}), POOL)  # type: ignore[arg-type]

    assert [shortfall.reason for shortfall in found] == [reason]


def test_every_shortfall_is_listed() -> None:
    """What did not fit is complete, not the first failure."""
    greedy = replace(MET, **{name: value for name, value, _ in ONE_TOO_MUCH})  # type: ignore[arg-type]

    found = static_shortfalls(greedy, replace(POOL, deterministic=False))

    expected = [reason for _, _, reason in ONE_TOO_MUCH] + [ExclusionReason.DETERMINISM]
    assert sorted(s.reason.value for s in found) == sorted(reason.value for reason in expected)


def test_compute_capability_compares_as_numbers() -> None:
    """8.10 is newer than 8.9, and unknown hardware meets no minimum."""
    needs = Needs("m", min_compute_cap=(8, 9))

    assert static_shortfalls(needs, replace(POOL, compute_capability=(8, 10))) == ()
    assert static_shortfalls(replace(needs, min_compute_cap=(8, 10)), POOL) == (
        Shortfall(ExclusionReason.COMPUTE_CAP, "8.10", "8.9"),
    )
    assert static_shortfalls(needs, snapshot()) == (
        Shortfall(ExclusionReason.COMPUTE_CAP, "8.9", "unknown"),
    )


@pytest.mark.parametrize(
    ("lacking", "family"),
    [
        ([], Reason.INCOMPATIBLE_MODEL),
        ([[ExclusionReason.MODEL]], Reason.INCOMPATIBLE_MODEL),
        ([[ExclusionReason.QUANTIZATION]], Reason.INCOMPATIBLE_MODEL),
        ([[ExclusionReason.ENGINE, ExclusionReason.VRAM_TOTAL]], Reason.INCOMPATIBLE_ENGINE),
        ([[ExclusionReason.COMPUTE_CAP]], Reason.INCOMPATIBLE_DEVICE_MASK),
        (
            [[ExclusionReason.MODEL], [ExclusionReason.VRAM_TOTAL], [ExclusionReason.ENGINE]],
            Reason.INCOMPATIBLE_DEVICE_MASK,
        ),
    ],
)
def test_the_family_is_that_of_the_closest_pool(
    lacking: list[list[ExclusionReason]], family: Reason
) -> None:
    """A pool that has the model but too little memory is closer than one without the model."""
    exclusions = [
        Exclusion(f"p{n}", tuple(Shortfall(reason, "", "") for reason in reasons))
        for n, reasons in enumerate(lacking)
    ]

    assert incompatibility(exclusions) is family
    assert incompatibility(reversed(exclusions)) is family


def test_a_pool_that_tells_no_devices_is_outside_every_mask() -> None:
    """ORCH-3011: it may use any device, so the job would not be held to its mask."""
    masked = Needs("m", device_mask=("gpu0",))

    for devices, inside in (((), False), (("gpu0",), True), (("gpu0", "gpu1"), False)):
        found = static_shortfalls(masked, snapshot(device_ids=devices))
        assert [s.reason for s in found] == ([] if inside else [ExclusionReason.DEVICE_MASK])


@pytest.mark.parametrize(
    ("split", "most"),
    [
        # Without a split the sum counts; with one, the device that is full first.
        ((), 36),
        ((1, 1), 24),
        ((2, 1), 36),
        ((1, 2), 18),
        ((1, 0), 24),
        ((0, 7), 12),
    ],
)
def test_a_tensor_split_is_bounded_by_the_device_that_is_full_first(
    split: tuple[int, ...], most: int
) -> None:
    """ORCH-3052: two even shares take no more than twice the smaller device."""
    pool = snapshot(
        device_ids=("big", "small"),
        device_memory_bytes=(24, 12),
        vram_total_bytes=36,
        tensor_split=split,
    )

    assert static_shortfalls(Needs("m", min_vram_bytes=most), pool) == ()
    assert static_shortfalls(Needs("m", min_vram_bytes=most + 1), pool)
    assert kv_shortfalls(spec(est_kv_bytes=most), pool) == ()
    assert kv_shortfalls(spec(est_kv_bytes=most + 1), pool)


def test_every_overfull_share_is_listed_with_its_device() -> None:
    """The share that a device would get, in whole bytes, beside what it has."""
    pool = snapshot(
        device_ids=("a", "b"), device_memory_bytes=(3, 4), vram_total_bytes=7, tensor_split=(1, 1)
    )

    assert static_shortfalls(Needs("m", min_vram_bytes=9), pool) == (
        Shortfall(ExclusionReason.VRAM_TOTAL, "9", "7"),
        Shortfall(ExclusionReason.DEVICE_SHARE, "5 on a", "3"),
        Shortfall(ExclusionReason.DEVICE_SHARE, "5 on b", "4"),
    )


@pytest.mark.parametrize(
    ("est_kv_bytes", "required_ctx", "per_token", "slot_bytes", "needed"),
    [
        (None, None, 10, 100, None),
        (None, 5, None, 100, None),
        (None, 5, 10, None, 50),
        (None, 5, 10, 100, 50),
        # Sliding windows: a slot in all takes less than its context times a token.
        (None, 50, 10, 100, 100),
        # The client's own word counts, also where it is zero or much.
        (7, 5, 10, 100, 7),
        (0, 5, 10, 100, 0),
        (900, 5, 10, 100, 900),
    ],
)
def test_a_required_context_becomes_bytes_of_the_pool(
    est_kv_bytes: int | None,
    required_ctx: int | None,
    per_token: int | None,
    slot_bytes: int | None,
    needed: int | None,
) -> None:
    """LO-201: `required_ctx` to `est_kv_bytes`, where the pool says what a token takes."""
    job = spec(est_kv_bytes=est_kv_bytes, needs=Needs("m", required_ctx=required_ctx))
    pool = snapshot(kv_bytes_per_token=per_token, kv_slot_bytes=slot_bytes)

    assert kv_needed_bytes(job, pool) == needed


@pytest.mark.parametrize(
    ("pool", "fits"),
    [
        ({"vram_total_bytes": 100}, 100),
        ({"kv_preallocated": True, "kv_slot_bytes": 25, "slots_total": 4}, 100),
        # What the pool does not tell excludes nothing.
        ({}, None),
        ({"kv_preallocated": True, "vram_total_bytes": 1}, None),
    ],
)
def test_keys_and_values_beyond_the_idle_pool_are_a_lasting_shortfall(
    pool: dict[str, object], fits: int | None
) -> None:
    """One byte more than all there is can never be served; where engines took it all, its sum."""
    offered = snapshot(**pool)

    assert kv_shortfalls(spec(), offered) == ()
    if fits is None:
        assert kv_shortfalls(spec(est_kv_bytes=1 << 60), offered) == ()
        return
    assert kv_shortfalls(spec(est_kv_bytes=fits), offered) == ()
    assert kv_shortfalls(spec(est_kv_bytes=fits + 1), offered) == (
        Shortfall(ExclusionReason.KV_TOTAL, str(fits + 1), str(fits)),
    )


def test_lasting_shortfalls_are_of_both_families_and_never_of_the_moment() -> None:
    """A refusal for good lists everything, and every reason in it has a family."""
    greedy = spec(est_kv_bytes=9, needs=replace(MET, model_id="x", required_ctx=5_000))

    found = [s.reason for s in lasting_shortfalls(greedy, POOL)]

    assert found == [ExclusionReason.MODEL, ExclusionReason.CONTEXT, ExclusionReason.KV_TOTAL]
    last = list(ExclusionReason).index(ExclusionReason.NOT_READY)
    assert set(list(ExclusionReason)[:last]) == STATIC_REASONS


@pytest.mark.parametrize("state", [PoolState.STARTING, PoolState.UNREADY])
def test_what_a_loading_engine_has_not_told_is_no_shortfall(state: PoolState) -> None:
    """LO-201: unknown is not "never"; what is configured is known already."""
    loading = replace(LOADING, state=state)

    assert static_shortfalls(MET, loading) == ()
    other = replace(MET, model_id="x", device_mask=("gpu0",), min_vram_bytes=9)
    assert {s.reason for s in static_shortfalls(other, loading)} == {
        ExclusionReason.MODEL,
        ExclusionReason.DEVICE_MASK,
        ExclusionReason.VRAM_TOTAL,
    }
    restarting = replace(POOL, state=state, ctx_max=512)
    assert [s.reason for s in static_shortfalls(MET, restarting)] == [ExclusionReason.CONTEXT]


def test_a_job_waits_for_an_engine_that_loads_for_the_first_time() -> None:
    """It is placed when the engine turns out to be the one that was asked for."""
    bench = Bench(LOADING)
    bench.enqueue("a", needs=MET)
    assert bench.core.jobs["a"].state is JobState.QUEUED

    bench.report(replace(POOL, version=2))

    assert bench.core.jobs["a"].state is JobState.DISPATCHED
