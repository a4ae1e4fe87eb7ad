"""Reloads of a pool whose attempts, drain or fetch are under way, in virtual time. OC-CTRL-2003."""

import asyncio

import pytest

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.core.replica import Reason
from tests.unit.pool_managerd.pools.pool_world import (
    ACTIONS,
    World,
    free_slot,
    in_world,
    make_pool,
    take_slot,
)


async def reload_while_it_runs(world: World, meanwhile: list[str]) -> None:
    """A reload with a time for attempts, of a pool that has one which never ends by itself."""
    make_pool(world)
    world.pool.open()
    await asyncio.sleep(1)
    take_slot(world)
    engine = world.pool.incarnation
    world.pool.reload("good", "id", 500)
    await asyncio.sleep(0.1)  # The model is found: the time for attempts runs.
    for name in meanwhile:
        ACTIONS[name](world)
    await asyncio.sleep(0.6)
    world.feed.publish("p")
    await asyncio.sleep(1)
    assert world.pool.incarnation is not engine
    world.pool.close()
    await world.pool.closed.wait()


@pytest.mark.parametrize("meanwhile", [[], ["undrain"], ["drain", "undrain"]])
def test_attempts_before_a_reload_have_its_time_whatever_becomes_of_a_drain(
    meanwhile: list[str],
) -> None:
    """A host that registers anew meanwhile is told that nobody drains the pool. OC-CTRL-2003."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(reload_while_it_runs(World(loop), meanwhile))
    finally:
        loop.clean_up()
        asyncio.set_event_loop(None)
        loop.close()


def test_a_pool_serves_on_while_the_model_of_its_reload_is_fetched() -> None:
    """That may take hours. The time for attempts begins when they are in the way."""

    async def story(world: World) -> None:
        former = world.pool.incarnation
        world.pool.reload("far", "r1", 500)
        await asyncio.sleep(3_599)
        assert world.pool.accepts_work
        take_slot(world)
        await asyncio.sleep(1.4)
        assert world.pool.incarnation is former
        assert not world.pool.accepts_work
        await asyncio.sleep(0.2)
        world.feed.publish("p")
        # The engine begins with the file that is there; this world fetches it again.
        await asyncio.sleep(3_601)
        assert [engine.model_ref for engine in world.running] == ["far"]

    in_world(story)


def test_a_model_that_cannot_be_had_costs_nobody_an_engine() -> None:
    """No attempt is ended for a slip of the pen, and the pool says what is wrong."""

    async def story(world: World) -> None:
        former = world.pool.incarnation
        take_slot(world)
        world.pool.reload("absent", "r1", 0)
        await asyncio.sleep(1)
        assert world.pool.incarnation is former
        assert world.pool.accepts_work
        assert not world.pool.idle
        last = world.pool.model.last
        assert last is not None
        assert (last.reload_id, last.state.value) == ("r1", "rolled_back")
        assert last.problem == "no such model"
        assert "the model absent could not be loaded: no such model" in world.pool.state()[2]

    in_world(story)


def test_a_reload_that_is_asked_for_while_another_model_is_fetched_counts() -> None:
    """Of several that wait the last one does, whether the first one's model comes or not."""

    async def story(world: World) -> None:
        take_slot(world)
        world.pool.reload("good", "r0")
        await asyncio.sleep(1)
        assert not world.pool.accepts_work
        world.pool.reload("far", "r1")
        await asyncio.sleep(1)
        assert world.pool.accepts_work
        world.pool.reload("other", "r2")
        await asyncio.sleep(3_600)
        assert not world.pool.accepts_work
        free_slot(world)
        await asyncio.sleep(1)
        assert [engine.model_ref for engine in world.running] == ["other"]
        assert world.pool.model.last is not None
        assert world.pool.model.last.reload_id == "r2"

    in_world(story)


def test_a_pool_is_closed_while_the_model_of_its_reload_is_fetched() -> None:
    """The end of the host waits for no download."""

    async def story(world: World) -> None:
        world.pool.reload("far")
        await asyncio.sleep(1)

    in_world(story)


def test_a_reload_that_was_asked_for_is_not_lost_when_pools_are_started_again() -> None:
    """The host is told to try again in the moment in which an operator chooses another model."""

    async def both(world: World) -> str:
        make_pool(world)
        world.broken = True
        world.pool.open()
        await asyncio.sleep(10)
        assert world.pool.state()[1] is Reason.RESTART_STORM
        world.broken = False
        world.pool.reload("good", "r1")
        world.pool.revive()
        await asyncio.sleep(10)
        (engine,) = world.running
        world.pool.close()
        await world.pool.closed.wait()
        assert world.pool.model.last is not None
        return f"{world.pool.model.last.reload_id} {engine.model_ref}"

    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        served = loop.run_until_complete(both(World(loop)))
    finally:
        loop.clean_up()
        asyncio.set_event_loop(None)
        loop.close()

    assert served == "r1 good"
