"""Watching an engine that misbehaves. ORCH-3038."""

import pytest

from pool_managerd.config_supervision import SupervisionTable
from pool_managerd.watching import until_unhealthy
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
