"""What a pool lacks for good, as data. LO-201, ORCH-3011."""

from dataclasses import replace

import pytest

from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.feasibility import incompatibility, static_shortfalls
from orchestrator_core.core.job import Needs
from orchestrator_core.core.outcome import Reason
from tests.unit.orchestrator_core.core.build import snapshot

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
