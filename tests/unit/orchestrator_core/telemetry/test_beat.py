"""The event loop's lateness is measured, whatever else of telemetry fails."""

import asyncio

import structlog.testing

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.machine import Core
from orchestrator_core.telemetry.fleet import PoolGauges
from orchestrator_core.telemetry.telemetry import BEAT_MS, SAMPLE_EVERY_MS, Telemetry
from tests.unit.orchestrator_core.telemetry.harness import Harness

SAMPLES = 2
RUN_MS = SAMPLES * SAMPLE_EVERY_MS + BEAT_MS // 2


class BrokenFleet:
    """Cannot be read."""

    def pools(self) -> tuple[PoolGauges, ...]:
        """Raises."""
        raise KeyError("p")


def test_gauges_that_cannot_be_read_stop_no_measurement() -> None:
    """Each failure is told, and the lag of the loop goes on being recorded."""
    harness = Harness()
    telemetry = Telemetry(metrics=harness.metrics, fleet=BrokenFleet())
    telemetry._push = True

    async def run() -> None:
        await telemetry.start(Core(CoreConfig()))
        await asyncio.sleep(RUN_MS / 1000)

    loop = VirtualLoop()
    try:
        with structlog.testing.capture_logs() as lines:
            loop.run_until_complete(run())
    finally:
        loop.clean_up()
        loop.close()

    (lag,) = harness.series("orchd_event_loop_lag_ms").values()
    assert [line["event"] for line in lines] == ["sample_failed"] * SAMPLES
    assert lag.count == RUN_MS // BEAT_MS
