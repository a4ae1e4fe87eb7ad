"""How fast places become free, and what rejected clients are told. ORCH-3017."""

from itertools import accumulate, pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator_core.core.drain import DEPARTURES_KEPT, DrainRate
from tests.unit.orchestrator_core.core.settings import STEADY


def busy(gaps_ms: list[int], start_ms: int = 0) -> tuple[DrainRate, int]:
    """A queue that never empties, left by one job after each gap; and the time of the last."""
    drain, now_ms = DrainRate(), start_ms
    drain.entered(now_ms)
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        drain.left(5, now_ms, freed=True)
    return drain, now_ms


@STEADY
@given(st.lists(st.integers(1, 5_000), min_size=2, max_size=150), st.integers(0, 20_000))
def test_the_gap_lies_between_those_that_were_seen(gaps_ms: list[int], open_ms: int) -> None:
    """Never below the shortest kept gap, never above the longest, the open one included."""
    drain, last_ms = busy(gaps_ms)

    gap_ms = drain.gap_ms(last_ms + open_ms)

    kept = gaps_ms[-DEPARTURES_KEPT:][1:]
    assert gap_ms is not None
    assert min(kept) <= gap_ms <= max(*kept, open_ms, kept[0])
    if open_ms <= min(kept):
        departures = list(accumulate(gaps_ms))[-DEPARTURES_KEPT:]
        span_ms = departures[-1] - departures[0]
        assert gap_ms == -(-span_ms // (len(departures) - 1))


@STEADY
@given(st.integers(10, 2_000), st.integers(10, 2_000))
def test_a_new_rate_is_approached_step_by_step(before_ms: int, after_ms: int) -> None:
    """No jump: each departure moves the gap by at most a share of the change, and never back."""
    drain, now_ms = busy([before_ms] * (DEPARTURES_KEPT + 1))
    seen = [drain.gap_ms(now_ms) or 0]
    for _ in range(DEPARTURES_KEPT + 1):
        now_ms += after_ms
        drain.left(5, now_ms, freed=True)
        seen.append(drain.gap_ms(now_ms) or 0)

    assert (seen[0], seen[-1]) == (before_ms, after_ms)
    change = after_ms - before_ms
    for one, following in pairwise(seen):
        assert (following - one) * change >= 0
        assert abs(following - one) <= abs(change) / (DEPARTURES_KEPT - 1) + 1


def test_idle_time_does_not_count() -> None:
    """After an hour without jobs a place is not said to take an hour."""
    drain, now_ms = busy([100] * 10)
    drain.left(0, now_ms + 100, freed=True)

    drain.entered(now_ms + 3_600_000)

    assert drain.gap_ms(now_ms + 3_600_000) == 100


def test_a_queue_that_stands_still_is_noticed() -> None:
    """While nobody leaves, the gap grows with the time that passes."""
    drain, now_ms = busy([100] * 10)

    assert drain.gap_ms(now_ms + 100) == 100
    assert (drain.gap_ms(now_ms + 60_000) or 0) > 5_000


def test_jobs_that_free_no_place_do_not_count() -> None:
    """Those that pass through, are displaced or are retried say nothing about the wait."""
    drain, now_ms = busy([100] * 10)

    for _ in range(100):
        drain.left(5, now_ms, freed=False)

    assert drain.gap_ms(now_ms) == 100


@STEADY
@given(st.lists(st.integers(0, 900), min_size=1, max_size=30), st.integers(1, 300))
def test_promises_are_a_gap_apart_and_expire_with_time(pauses_ms: list[int], gap_ms: int) -> None:
    """No two clients are told to come within one gap of each other, and nobody waits for more."""
    assume(sum(pauses_ms) > 0)
    drain, now_ms, told = DrainRate(), 0, []
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        at_ms = drain.next_place_ms(gap_ms, now_ms)
        outstanding = sum(1 for earlier in told if earlier > now_ms)
        assert at_ms - now_ms <= (outstanding + 1) * gap_ms
        drain.promise(at_ms)
        told.append(at_ms)

    assert all(following - one >= gap_ms for one, following in pairwise(told))
