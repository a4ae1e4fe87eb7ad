"""Watching an engine that misbehaves. ORCH-3038."""

import asyncio

import pytest

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.config.supervision import SupervisionTable
from pool_managerd.pools.watching import until_unhealthy
from tests.integration.pool_managerd.fakes import ScriptedEngine


class BrokenEngine(ScriptedEngine):
    """Its adapter breaks when it is asked how the engine is."""

    async def healthy(self) -> bool:
        """Never says."""
        raise RuntimeError("session is closed")


@pytest.mark.timeout(10)
async def test_an_adapter_that_breaks_is_an_unhealthy_engine() -> None:
    """It costs its own pool a restart; the task that watches it must not end the whole host."""
    limits = SupervisionTable(health_interval_ms=1, health_failures=2)

    assert await until_unhealthy(BrokenEngine(), limits) == "2 health checks in a row failed"


class SlowEngine(ScriptedEngine):
    """Is well, and says so after a while."""

    def __init__(self, answers_after_ms: int) -> None:
        super().__init__()
        self._answers_after_ms = answers_after_ms
        self.asked = 0

    async def healthy(self) -> bool:
        """Well, but late."""
        self.asked += 1
        await asyncio.sleep(self._answers_after_ms / 1000)
        return True


def test_how_long_an_engine_may_take_to_say_that_it_is_well_can_be_set() -> None:
    """One that is busy for seconds, as with a long prompt on few cores, need not count as dead."""
    limits = SupervisionTable(health_interval_ms=10, health_failures=2, health_timeout_ms=5_000)

    async def watched_for(engine: SlowEngine, limits: SupervisionTable) -> str:
        try:
            async with asyncio.timeout(60):
                return await until_unhealthy(engine, limits)
        except TimeoutError:
            return ""

    slow, slower = SlowEngine(4_000), SlowEngine(6_000)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        patient = loop.run_until_complete(watched_for(slow, limits))
        impatient = loop.run_until_complete(watched_for(slower, limits))
    finally:
        loop.clean_up()
        asyncio.set_event_loop(None)
        loop.close()

    assert (patient, slow.asked) == ("", 15)
    assert (impatient, slower.asked) == ("2 health checks in a row failed", 2)
