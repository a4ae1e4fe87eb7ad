"""Clock event reasons and what they do to a pool's speed. ORCH-3040."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.clocks import SLOWDOWN, perf_scale, reason_names, slowdown
from pool_managerd.core.device import Device, DeviceKind


def gpu(clock: int | None, highest: int | None, reasons: int | None) -> Device:
    """A GPU with these clocks, in MHz."""
    return Device(
        "GPU-a",
        DeviceKind.GPU,
        sm_clock_mhz=clock,
        max_sm_clock_mhz=highest,
        clock_event_reasons=reasons,
    )


@pytest.mark.parametrize("reason", [0x8, 0x20, 0x40, 0x80])
def test_a_gpu_that_protects_itself_is_slower_by_its_clock(reason: int) -> None:
    """Hardware slowdown, both thermal slowdowns and the power brake count."""
    assert slowdown(gpu(1000, 2000, reason)) == 0.5
    assert slowdown(gpu(1999, 2000, reason)) == 0.95, "whole twentieths, rounded down"


@pytest.mark.parametrize("reason", [0, 0x1, 0x2, 0x4, 0x10, 0x100, None])
def test_clocks_that_are_low_for_other_reasons_do_not_count(reason: int | None) -> None:
    """Idle and power-capped GPUs work as they always do."""
    assert slowdown(gpu(300, 2000, reason)) == 1.0


@given(st.none() | st.integers(0, 10_000), st.none() | st.integers(0, 10_000), st.integers(0, 511))
def test_the_factor_is_never_0_nor_above_1(
    clock: int | None, highest: int | None, reasons: int
) -> None:
    """Whatever is reported; unknown clocks change nothing, and it never flatters the clock."""
    factor = slowdown(gpu(clock, highest, reasons))

    assert 0.05 <= factor <= 1.0
    if clock is None or not highest or not reasons & SLOWDOWN:
        assert factor == 1.0
    elif highest and clock >= highest / 20:
        assert Fraction(round(factor * 20), 20) <= Fraction(clock, highest)


def test_the_slowest_device_sets_the_pace_and_1_is_not_told() -> None:
    """A pool without devices, or with well ones, has no factor."""
    slow, fast = gpu(600, 2000, 0x40), gpu(1900, 2000, 0)

    assert perf_scale((fast, slow)) == 0.3
    assert perf_scale((fast,)) is None
    assert perf_scale(()) is None


def test_reasons_have_names() -> None:
    """A bit that is not known yet is told as a number."""
    assert reason_names(0x44) == ("power cap", "hardware thermal slowdown")
    assert reason_names(0) == ()
    assert reason_names(1 << 20) == ("0x100000",)
