"""Whoever gives a job is its audience until told that it is accepted. LO-303."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import HostRegistered, SubscribersChanged, Tick
from orchestrator_core.core.machine import Core
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from tests.integration.orchestrator.stores import SlowStore
from tests.unit.orchestrator_core.around_runtime import HandClock, Silent
from tests.unit.orchestrator_core.core.build import snapshot, spec

GRACE_MS = 1_000


@asynccontextmanager
async def accepting() -> AsyncIterator[tuple[Runtime, SlowStore, HandClock]]:
    """A runtime with a pool, whose journal has begun to write a job and does not end."""
    store, clock = SlowStore(), HandClock()
    await store.open()
    core = Core(CoreConfig(disconnect_grace_ms=GRACE_MS))
    runtime = Runtime(core, store, clock, Relay(RelayLimits()), Hosts(), Silent())
    runtime.submit(HostRegistered("h", 1, (snapshot(),), ()))
    commit = asyncio.create_task(runtime.run())
    store.moving.clear()
    given = asyncio.create_task(runtime.enqueue(spec("a", cancel_on_disconnect=True)))
    await store.waiting.wait()
    try:
        yield runtime, store, clock
    finally:
        for task in (commit, given):
            task.cancel()
        await asyncio.gather(commit, given, return_exceptions=True)
        runtime.close()


async def told(runtime: Runtime, store: SlowStore) -> None:
    """The journal goes on; returns once the caller was answered."""
    store.moving.set()
    await runtime.settled("a")


def state(runtime: Runtime) -> JobState:
    """How the job stands."""
    return runtime.core.jobs["a"].state


async def test_a_slow_journal_cancels_no_job_whose_caller_waits_for_it() -> None:
    """It could not follow the job before it was told of it; from then on the grace counts."""
    async with accepting() as (runtime, store, clock):
        clock.ms += 20 * GRACE_MS
        runtime.submit(Tick())
        while_it_waits = state(runtime)
        await told(runtime, store)
        clock.ms += GRACE_MS - 1
        runtime.submit(Tick())
        within_the_grace = state(runtime)
        clock.ms += 1
        runtime.submit(Tick())

        assert while_it_waits is within_the_grace is JobState.DISPATCHED
        assert state(runtime) is JobState.CANCELLED


async def test_a_caller_that_follows_once_it_is_told_keeps_its_job() -> None:
    """The end of the wait takes nothing from who came after it."""
    async with accepting() as (runtime, store, clock):
        await told(runtime, store)
        runtime.submit(SubscribersChanged("a", 1))
        clock.ms += 2 * GRACE_MS
        runtime.submit(Tick())

        assert state(runtime) is JobState.DISPATCHED


async def test_a_caller_that_left_meanwhile_is_no_audience() -> None:
    """Nobody is there to be told, and the grace counts from when it would have been."""
    async with accepting() as (runtime, store, clock):
        spec_of_another = spec("b", cancel_on_disconnect=True)
        leaves = asyncio.create_task(runtime.enqueue(spec_of_another))
        await asyncio.sleep(0)
        assert "b" in runtime.core.jobs
        leaves.cancel()
        await asyncio.wait([leaves])
        await told(runtime, store)
        await runtime.settled("b")
        clock.ms += GRACE_MS
        runtime.submit(Tick())

        assert runtime.core.jobs["b"].state is JobState.CANCELLED
