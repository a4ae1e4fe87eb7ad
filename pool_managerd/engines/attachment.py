"""A foreign server that becomes another one: upgraded, restarted with other settings or weights.

Nobody watches its process, and one that is back within two health checks was never seen to be gone.
But what its pool tells of it, and which pools are its replicas, would be wrong from then on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from pool_managerd.engines.port import EngineError

LOOK_INTERVAL_MS = 30_000
"""Time between two looks at what a server says of itself."""

_SHOWN_CHARS = 60

Told = Mapping[str, object]
"""What a server says of itself, by names for people; None where it does not."""


async def until_replaced(look: Callable[[], Awaitable[Told]], told: Told, interval_ms: int) -> str:
    """Returns in a sentence how the server differs from what it `told`, once it does.

    A look that fails, and what it leaves unsaid, says nothing: that is the health check's matter.
    """
    while True:
        await asyncio.sleep(interval_ms / 1000)
        try:
            now = await look()
        except EngineError:
            continue
        changes = [
            f"its {name} was {_shown(before)} and is {_shown(after)}"
            for name, before in told.items()
            if None not in (before, after := now.get(name)) and after != before
        ]
        if changes:
            return f"the server was replaced by another one: {', '.join(changes)}"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
