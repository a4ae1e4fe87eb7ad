"""How a pool watches its engine: exit, health, attempts; and how it says that it has given up."""

import asyncio
from collections.abc import Callable, Mapping

from pool_managerd.config.supervision import CircuitTable, SupervisionTable
from pool_managerd.core.attempts import AttemptFailure, ErrorKind
from pool_managerd.core.backoff import Backoff
from pool_managerd.core.circuit import CircuitLimits
from pool_managerd.core.replica import Reason
from pool_managerd.engines.port import Ended, Engine, Failure

REMIND_CAP_MS = 3_600_000
"""Longest time between two reminders."""

_REASONS: Mapping[Failure, Reason] = {
    Failure.DEVICE_OUT_OF_MEMORY: Reason.DEVICE_OUT_OF_MEMORY,
    Failure.HOST_OUT_OF_MEMORY: Reason.HOST_OUT_OF_MEMORY,
}
_ENGINES_FAULT = frozenset(
    {
        ErrorKind.ENGINE_DIED,
        ErrorKind.ENGINE_ERROR,
        ErrorKind.DEVICE_OUT_OF_MEMORY,
        ErrorKind.HOST_OUT_OF_MEMORY,
    }
)


def reason_of(failure: Failure, otherwise: Reason) -> Reason:
    """The reason of a pool whose engine failed like that: memory by name. ORCH-3039."""
    return _REASONS.get(failure, otherwise)


def engines_fault(outcome: AttemptFailure) -> bool:
    """True when an attempt's failure speaks against the engine and not against the request."""
    return outcome.kind in _ENGINES_FAULT


def circuit_limits(table: CircuitTable) -> CircuitLimits:
    """The circuit's limits as configured."""
    pause = Backoff(table.pause.initial_ms, table.pause.cap_ms)
    return CircuitLimits(table.errors, table.window_ms, pause, table.probes_max)


async def exit_of(engine: Engine) -> tuple[Reason, str]:
    """Waits for the engine's end; the reason, and a sentence for people."""
    try:
        news = await engine.wait_exit()
    except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
        news = f"the engine is no longer watched: {type(error).__name__}"
    ended = news if isinstance(news, Ended) else Ended(Failure.ENGINE_DIED, news)
    return reason_of(ended.failure, Reason.ENGINE_EXITED), ended.message


async def until_unhealthy(engine: Engine, limits: SupervisionTable) -> str:
    """Returns a sentence for people once too many health checks in a row have failed."""
    failures = 0
    while failures < limits.health_failures:
        await asyncio.sleep(limits.health_interval_ms / 1000)
        failures = 0 if await _healthy(engine, limits.health_timeout_ms) else failures + 1
    return f"{failures} health checks in a row failed"


async def _healthy(engine: Engine, timeout_ms: int) -> bool:
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await engine.healthy()
    except Exception:  # noqa: BLE001 - a broken adapter must not end the host
        return False


class Reminder:
    """Says something now, and ever more rarely for as long as it is true: at least once an hour."""

    def __init__(self, tell: Callable[[], None], first_ms: int) -> None:
        self._tell = tell
        self._first_ms = first_ms
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, needed: bool) -> None:
        """Starts unless it runs already, or stops."""
        if needed and self._timer is None:
            self._remind(self._first_ms)
        elif not needed and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _remind(self, wait_ms: int) -> None:
        self._tell()
        next_ms = min(2 * wait_ms, max(self._first_ms, REMIND_CAP_MS))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(wait_ms / 1000, self._remind, next_ms)
