"""Backoff, slots and device facts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.backoff import Backoff
from pool_managerd.core.device import (
    Device,
    DeviceKind,
    lowest_compute_capability,
    sum_or_none,
)
from pool_managerd.core.slots import Slots


@given(
    st.integers(1, 10_000),
    st.integers(0, 100_000),
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_lies_between_half_and_all_of_the_capped_doubling(
    initial_ms: int, more_ms: int, failures: int, jitter: float
) -> None:
    """The wait never exceeds the cap and never vanishes after a failure."""
    backoff = Backoff(initial_ms, initial_ms + more_ms)

    delay_ms = backoff.delay_ms(failures, jitter)

    full_ms = min(backoff.cap_ms, initial_ms * 2 ** max(0, min(failures, 30) - 1))
    assert delay_ms == 0 if failures == 0 else full_ms / 2 <= delay_ms <= full_ms


@pytest.mark.parametrize(("initial_ms", "cap_ms"), [(0, 1), (2, 1)])
def test_a_backoff_without_bounds_is_refused(initial_ms: int, cap_ms: int) -> None:
    """Zero waits and inverted bounds are misuse."""
    with pytest.raises(ValueError, match="backoff"):
        Backoff(initial_ms, cap_ms)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_slots_are_never_exceeded(total: int, script: list[tuple[bool, int]]) -> None:
    """Holders never outnumber slots, whoever asks and returns how often. LO-204."""
    slots, naive = Slots(total), set[int]()
    for acquire, holder in script:
        if acquire:
            fits = holder in naive or len(naive) < total
            assert slots.acquire(holder) == fits
            if fits:
                naive.add(holder)
        else:
            slots.release(holder)
            naive.discard(holder)
        assert slots.free == total - len(naive)


def test_an_engine_without_slots_is_refused() -> None:
    """Zero slots is misuse."""
    with pytest.raises(ValueError, match="slot"):
        Slots(0)


def test_compute_capabilities_compare_as_numbers() -> None:
    """8.10 is newer than 8.9; one unknown capability makes the pool's unknown. ORCH-1103."""
    devices = tuple(
        Device(f"GPU-{text}", DeviceKind.GPU, compute_capability=text) for text in ("8.10", "8.9")
    )

    assert lowest_compute_capability(devices) == "8.9"
    assert lowest_compute_capability((*devices, Device("x", DeviceKind.GPU))) is None
    assert lowest_compute_capability(()) is None


def test_an_unknown_summand_makes_the_sum_unknown() -> None:
    """Absent is not zero."""
    assert sum_or_none([1, 2]) == 3
    assert sum_or_none([1, None]) is None
    assert sum_or_none([]) is None
