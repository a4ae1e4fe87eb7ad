"""Finds out whether a server still works on a generation whose connection was closed.

Such servers push no news of it, so this asks every few milliseconds within the caller's bound.
"""

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client.parser import text_string_to_metric_families

from pool_managerd.engines.http_client import HttpApiError, HttpClient
from pool_managerd.engines.openai_flavors import IdleSigns

_POLL_INTERVAL_S = 0.02
_QUIET_POLLS_UNANSWERED = 3
_STALE_S = 1.0


class IdleCheck:
    """Compares what a server works on with what is open here. `shown`: the server tells it."""

    def __init__(self, http: HttpClient, signs: IdleSigns) -> None:
        self._http = http
        self._signs = signs

    async def is_shown(self) -> bool:
        """Tells whether the server shows the signs; metrics are often off by default."""
        return await self._look() is not None

    async def wait(self, running: Callable[[], int], *, answered: bool) -> None:
        """Returns once the server works on no more generations than are `running` for us.

        One that was closed before it was `answered` may still be on its way in, so one glance
        proves nothing. Where nothing runs, gauges that stand still together with the counters for
        a second are stale. The caller bounds the wait.
        """
        needed, quiet = 1 if answered else _QUIET_POLLS_UNANSWERED, 0
        loop = asyncio.get_running_loop()
        last, since = None, loop.time()
        while True:
            seen = await self._look()
            if seen != last:
                last, since = seen, loop.time()
            quiet = quiet + 1 if seen is not None and seen[0] <= running() else 0
            stale = bool(self._signs.counters) and seen is not None and running() == 0
            if quiet == needed or (stale and loop.time() - since >= _STALE_S):
                return
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _look(self) -> tuple[int, float] | None:
        """Returns generations at work and the sum of the counters; None when it shows neither."""
        try:
            if not self._signs.gauges:
                return _slots_at_work(await self._http.call("GET", self._signs.path))
            text = (await self._http.text("GET", self._signs.path)).decode(errors="replace")
            return _metrics(text, self._signs)
        except (HttpApiError, ValueError, OverflowError):
            return None


def _slots_at_work(slots: object) -> tuple[int, float] | None:
    if not isinstance(slots, list):
        return None
    busy = [slot for slot in slots if isinstance(slot, dict) and slot.get("is_processing")]
    return len(busy), 0.0


def _metrics(text: str, signs: IdleSigns) -> tuple[int, float] | None:
    samples = [
        (sample.name, float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    gauges = [value for name, value in samples if name in signs.gauges]
    counters: Iterable[float] = (value for name, value in samples if name in signs.counters)
    return (round(sum(gauges)), sum(counters)) if gauges else None
