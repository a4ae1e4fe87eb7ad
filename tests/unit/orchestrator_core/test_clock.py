"""The clock that the core is given."""

import sys
import time

import pytest
import structlog

from orchestrator_core.clock import ClockWatch, SystemClock

MINUTE_NS = 60_000_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count no time of sleep apart")
def test_time_for_which_the_machine_slept_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """OC-CORE-1022: the monotonic clock stands still meanwhile, deadlines must not."""
    now_ns = {time.CLOCK_MONOTONIC: 5 * MINUTE_NS, time.CLOCK_BOOTTIME: 9 * MINUTE_NS}
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock_id: now_ns[clock_id])
    clock = SystemClock()
    began_ms = clock.now_ms()

    now_ns[time.CLOCK_BOOTTIME] += MINUTE_NS

    assert clock.now_ms() - began_ms == 60_000


def test_time_begins_no_earlier_than_the_journal_ended() -> None:
    """A wall clock that was set back takes no job back in time."""
    later_ms = (time.time_ns() // 1_000_000) + 3_600_000

    assert SystemClock(later_ms).now_ms() >= later_ms
    assert SystemClock(0).now_ms() < later_ms


def test_a_machine_whose_clock_was_set_is_told_and_little_differences_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told once, until it changes by a minute again."""
    wall_ns = [1_000 * MINUTE_NS]
    elapsed_ns = [0]
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns[0])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: elapsed_ns[0])
    clock = SystemClock()
    watch = ClockWatch(clock)

    told = []
    for set_ms in (0, 999, -480 * 60_000, 2_000, 480 * 60_000):
        wall_ns[0] += set_ms * 1_000_000
        elapsed_ns[0] += MINUTE_NS
        wall_ns[0] += MINUTE_NS
        with structlog.testing.capture_logs() as lines:
            watch.look()
            watch.look()
        told.append((clock.ahead_ms(), [line["ahead_ms"] for line in lines]))

    assert told == [
        (0, []),
        (0, []),
        (28_799_001, [28_799_001]),
        (28_797_001, []),
        (-2_999, [-2_999]),
    ]
