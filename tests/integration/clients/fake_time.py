"""Time that passes only when somebody sleeps."""

import asyncio

from llamaorch_client import Timing


class FakeTime:
    """Records every sleep; each one moves the clock by exactly its length."""

    def __init__(self, fraction: float = 0.0) -> None:
        self.sleeps_ms: list[float] = []
        self.timing = Timing(
            now_ms=lambda: int(self._now_ms), sleep_ms=self._sleep, fraction=lambda: fraction
        )
        self._now_ms = 0.0

    def pass_ms(self, span_ms: int) -> None:
        """Lets time pass without a sleep, as while a call is open."""
        self._now_ms += span_ms

    async def _sleep(self, delay_ms: float) -> None:
        self.sleeps_ms.append(delay_ms)
        self._now_ms += delay_ms
        # Lets gRPC's own events through, as a real sleep would.
        await asyncio.sleep(0)
