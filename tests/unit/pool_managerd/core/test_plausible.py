"""Readings that cannot be true are left out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.plausible import BOUNDS, capability_text, plausible

BARE = Device("GPU-a", DeviceKind.GPU)
MEMORY = {
    "memory_total_bytes": 24 << 30,
    "memory_free_bytes": 20 << 30,
    "memory_used_bytes": 3 << 30,
    "memory_reserved_bytes": 1 << 30,
}


@given(st.dictionaries(st.sampled_from(sorted(BOUNDS)), st.integers(-1, 1 << 66) | st.floats(0, 1)))
def test_what_is_told_lies_within_the_bounds(told: dict[str, int]) -> None:
    """And whatever lay within them is told, memory only as a whole."""
    device = plausible(replace(BARE, **told))

    for name, (low, high) in BOUNDS.items():
        value = getattr(device, name)
        assert value is None or low <= value <= high
        if not name.startswith("memory_") or name == "memory_clock_mhz":
            inside = name in told and low <= told[name] <= high
            assert (value is not None) == inside
    total = device.memory_total_bytes
    assert all((getattr(device, name) or 0) <= (total or 0) for name in MEMORY)


@pytest.mark.parametrize(
    ("capability", "told"),
    [((8, 9), "8.9"), ((12, 0), "12.0"), ((-1, 0), None), ((9, -4), None), ((65_535, 0), None)],
)
def test_a_capability_is_told_where_it_can_be(
    capability: tuple[int, int], told: str | None
) -> None:
    """The orchestrator takes no snapshot with another one."""
    assert capability_text(capability) == told


@pytest.mark.parametrize(
    "change",
    [
        {"memory_free_bytes": 25 << 30},
        {"memory_total_bytes": None},
        {"memory_total_bytes": 0},
        {"memory_used_bytes": -1},
    ],
)
def test_memory_that_contradicts_itself_is_left_out_as_a_whole(change: dict[str, int]) -> None:
    """Half of a wrong answer is no better."""
    device = plausible(replace(BARE, **{**MEMORY, **change}))

    assert {getattr(device, name) for name in MEMORY} == {None}


def test_a_true_reading_is_not_touched() -> None:
    """It is the same object: nothing is copied each second."""
    device = replace(BARE, **MEMORY, utilization_ratio=1.0, temperature_celsius=90)

    assert plausible(device) is device
