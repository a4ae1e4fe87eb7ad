"""The clock that the core is given."""

import sys
import time

import pytest

from orchestrator_core.clock import SystemClock

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
