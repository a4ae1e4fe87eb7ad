"""The runtime tells the core when the event loop stood still."""

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator_core import pauses as module
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import Event, Stalled, Tick
from orchestrator_core.core.machine import Core
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.pauses import BEAT_MS, PAUSE_MIN_MS
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.store.memory import MemoryStore
from tests.unit.orchestrator_core.around_runtime import HandClock, Silent
from tests.unit.orchestrator_core.core.bench import Bench, wide
from tests.unit.orchestrator_core.core.journals import journal


class Heard(Core):
    """A core that notes what it is told."""

    def __init__(self) -> None:
        super().__init__(CoreConfig())
        self.events: list[Event] = []

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Notes the event first."""
        self.events.append(event)
        return super().step(event, now_ms)


async def told(late_ms: int, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the core hears of an event that comes so long after the loop last showed itself."""
    core, clock = Heard(), HandClock()
    relay = Relay(RelayLimits(4_096, 4_096))
    runtime = Runtime(core, MemoryStore(), clock, relay, Hosts(), Silent())
    beating = asyncio.Event()

    async def sleep(_: float) -> None:
        beating.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    watch = asyncio.create_task(runtime.watch_pauses())
    await beating.wait()
    clock.ms += late_ms
    runtime.submit(Tick())
    runtime.submit(Tick())
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    runtime.close()
    return core.events


async def test_a_pause_is_told_before_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """OC-CORE-1022: once, and by how much the loop was late."""
    assert await told(BEAT_MS + 4_000, monkeypatch) == [Stalled(4_000), Tick(), Tick()]


async def test_a_little_lateness_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy loop is not a stopped one."""
    assert await told(BEAT_MS + PAUSE_MIN_MS - 1, monkeypatch) == [Tick(), Tick()]


async def test_a_pause_is_told_although_nothing_happens_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OC-CORE-1022: the beat that comes late must not hide it from what happens later."""
    core, clock = Heard(), HandClock()
    relay = Relay(RelayLimits(4_096, 4_096))
    runtime = Runtime(core, MemoryStore(), clock, relay, Hosts(), Silent())
    late, noticed = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        if late.is_set():
            noticed.set()
            await asyncio.Event().wait()
        late.set()
        clock.ms += BEAT_MS + 4_000

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    watch = asyncio.create_task(runtime.watch_pauses())
    await noticed.wait()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    runtime.close()

    assert core.events == [Stalled(4_000), Tick()]


class Slow(Silent):
    """Whatever is decided takes so long."""

    def __init__(self, clock: HandClock, step_ms: int) -> None:
        self._clock, self._step_ms = clock, step_ms

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """Time passes."""
        self._clock.ms += self._step_ms


async def test_hosts_have_their_grace_once_a_long_journal_was_taken_up() -> None:
    """LO-305: what runs there is not lost while nobody could be heard.

    The end of old jobs is asked for within the same turn of the loop.
    """
    before = Bench(wide(), retention_ms=1_000)
    effects = [*before.enqueue("old"), *before.end("old"), *before.enqueue("runs")]
    core, clock = Core(CoreConfig(retention_ms=1_000, reattach_grace_ms=10_000)), HandClock()
    relay = Relay(RelayLimits(4_096, 4_096))
    clock.ms = 60_000
    slow = Slow(clock, 11_000)
    runtime = Runtime(core, MemoryStore(), clock, relay, Hosts(), slow)

    runtime.recover(journal(*effects))
    runtime.submit(Tick())
    runtime.close()

    assert core.jobs["runs"].state is JobState.DISPATCHED
