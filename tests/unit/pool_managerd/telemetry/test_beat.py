"""The event loop's lateness is measured, whatever else of telemetry fails."""

import asyncio

import structlog.testing

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.telemetry.spans import BEAT_MS, SAMPLE_EVERY_MS, Telemetry

SAMPLES = 2
BEATS = SAMPLES * SAMPLE_EVERY_MS // BEAT_MS


def test_gauges_that_cannot_be_read_stop_no_measurement() -> None:
    """Each failure is told, and the lag of the loop goes on being recorded."""
    telemetry = Telemetry()
    telemetry._measures = True
    late: list[float] = []
    telemetry.metrics.loop_was_late = late.append  # type: ignore[assignment, method-assign]

    def broken() -> None:
        raise KeyError("gpu0")

    async def run() -> None:
        await telemetry.start(broken)
        await asyncio.sleep((BEATS + 0.5) * BEAT_MS / 1000)

    loop = VirtualLoop()
    try:
        with structlog.testing.capture_logs() as lines:
            loop.run_until_complete(run())
    finally:
        loop.clean_up()
        loop.close()

    assert [line["event"] for line in lines] == ["sample_failed"] * SAMPLES
    assert len(late) == BEATS
