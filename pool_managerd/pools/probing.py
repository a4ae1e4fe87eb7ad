"""Tests of engines: before one serves, and while its circuit is open. ORCH-3040, ORCH-3049."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from pool_managerd.config.supervision import SupervisionTable
from pool_managerd.engines.port import Engine, EngineInfo, PreloadError
from pool_managerd.pools.incarnation import Incarnation
from pool_managerd.pools.selftest import self_test

_PROBE = "self-test"


class Tester:
    """The tests of one pool's engines."""

    def __init__(self, limits: SupervisionTable, before_ready: bool) -> None:
        self._limits = limits
        self._before_ready = before_ready

    async def accept(self, engine: Engine, info: EngineInfo) -> None:
        """Tests an engine before it serves, where that is wanted.

        Raises:
            PreloadError: when it does not pass.
        """
        problem = await self._tested(engine, info) if self._before_ready else ""
        if problem:
            raise PreloadError([f"the self-test failed: {problem}"])

    async def probes(
        self, incarnation: Incarnation, info: EngineInfo, jitter: Callable[[], float]
    ) -> AsyncGenerator[str, None]:
        """Tests an engine after each pause while its circuit is open.

        Yields what is wrong, or nothing once it passed. Each test takes one slot.
        """
        circuit, engine, slots = incarnation.circuit, incarnation.engine, incarnation.slots
        assert engine is not None, "an engine with attempts was started"
        assert slots is not None, "an engine with attempts has slots"
        while circuit.open:
            await asyncio.sleep(circuit.pause_ms(jitter()) / 1000)
            if not slots.acquire(_PROBE):
                continue
            try:
                problem = await self._tested(engine, info)
            except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
                problem = f"the adapter failed: {type(error).__name__}"
            finally:
                slots.release(_PROBE)
            circuit.probed(passed=not problem)
            yield problem

    async def _tested(self, engine: Engine, info: EngineInfo) -> str:
        limits = self._limits
        return await self_test(engine, info, limits.self_test.timeout_ms, limits.cancel_confirm_ms)
