"""One life of an engine, and what every pool of a host shares."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from pool_managerd.clock import Clock
from pool_managerd.config.schema import PoolTable
from pool_managerd.config.supervision import SupervisionTable
from pool_managerd.core.circuit import Circuit
from pool_managerd.core.slots import Slots
from pool_managerd.engines.port import Engine, EngineInfo
from pool_managerd.pools.feed import ChangeFeed
from pool_managerd.preflight.port import NoPreflight, Preflight
from pool_managerd.telemetry import Telemetry, log

WARM_SESSIONS_MAX = 64
KILL_TIMEOUT_S = 5.0
"""Longest wait for the end of an engine that was killed because its stop took too long."""

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]
EngineFactory = Callable[[PoolTable, str], Engine]


class AttemptKeeper(Protocol):
    """What a pool asks of the executor."""

    def replica_gone(self, replica_id: str, sentence: str) -> None:
        """The engine of `replica_id` is over: its attempts end with ENGINE_DIED."""
        ...

    def drain_expired(self, pool_id: str) -> None:
        """A drain's time is up: the pool's attempts are stopped."""
        ...


@dataclass(frozen=True, slots=True)
class PoolDeps:
    """What every pool of a host shares.

    `random_hex(n)` gives n hex digits, `jitter()` a number in [0, 1).
    """

    clock: Clock
    feed: ChangeFeed
    telemetry: Telemetry
    spawn: Spawn
    make_engine: EngineFactory
    random_hex: Callable[[int], str]
    jitter: Callable[[], float]
    supervision: SupervisionTable
    preflight: Preflight = field(default_factory=NoPreflight)


@dataclass(slots=True, eq=False)
class Incarnation:
    """One life of an engine. `gone` is set once the engine is stopped."""

    replica_id: str
    circuit: Circuit
    engine: Engine | None = None
    slots: Slots | None = None
    failing: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    # Sessions served most recently, at most one for each slot: their keys and values may be cached.
    warm: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def note_session(self, session_id: str, info: EngineInfo | None) -> None:
        """Notes that a slot served `session_id` last, of an engine as `info` says."""
        if not session_id or info is None or info.deterministic:
            return
        self.warm[session_id] = None
        self.warm.move_to_end(session_id)
        while len(self.warm) > min(info.slots_total, WARM_SESSIONS_MAX):
            self.warm.popitem(last=False)

    async def end(self, pool_id: str, stop_timeout_ms: int) -> None:
        """Stops the engine, if there is one; whatever it does, this ends.

        An engine whose stop is cut short is killed; the second call waits until it is gone.
        """
        if self.engine is None:
            return
        for timeout_s in (stop_timeout_ms / 1000, KILL_TIMEOUT_S):
            try:
                async with asyncio.timeout(timeout_s):
                    await self.engine.stop()
            except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
                log.error(
                    "engine_stop_failed",
                    pool_id=pool_id,
                    replica_id=self.replica_id,
                    error=f"{type(error).__name__}: {error}",
                    human=f"The engine of pool {pool_id} could not be stopped; tried again.",
                )
            else:
                return
