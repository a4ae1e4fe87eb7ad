"""What an operator does, and what happens to engines and services."""

import asyncio

from llamaorch_client import Failed, Resumed, Started
from tests.features.commands import llorch
from tests.features.gherkin import at_any_point, given, then, when
from tests.features.service import HOST_NAME
from tests.features.steps.wishes import job
from tests.features.world import World

# --- engines


@at_any_point('"{name}" has started')
async def has_started(world: World, name: str) -> None:
    """It is at an engine."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: any(isinstance(event, Started) for event in reader.events))


@at_any_point('"{name}" has said its first word')
async def first_word(world: World, name: str) -> None:
    """And its client has read it."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: bool(reader.text))


@when('the engine of "{name}" crashes')
async def engine_crashes(world: World, name: str) -> None:
    """Without a word to anybody."""
    reader = world.jobs[name].follow()
    started = next(event for event in reader.events if isinstance(event, Started))
    world.service.engines[started.pool_id][-1].die()  # type: ignore[attr-defined]


@then('"{name}" is told that it was resumed by {mode:w} with a cold cache')
async def resumed_by(world: World, name: str, mode: str) -> None:
    """Where the next engine took up the text."""
    reader = world.jobs[name].follow()
    (resumed,) = [event for event in reader.events if isinstance(event, Resumed)]
    assert (resumed.mode, resumed.attempt, resumed.kv_warmth) == (mode, 2, False)
    assert 0 < resumed.text_offset < len(reader.text.encode())


@then('"{name}" says what it would have said without the crash')
async def undisturbed(world: World, name: str) -> None:
    """The same request, and nobody crashes."""
    crashed = world.jobs[name].follow()
    await world.ask("undisturbed", job())
    reader = world.jobs["undisturbed"].follow()
    assert await reader.ended() == "FINISHED"
    assert crashed.text == reader.text


@then("its error tells how many bytes were delivered")
async def error_tells_bytes(world: World) -> None:
    """So that a client knows what it has."""
    (asked,) = [each for each in world.jobs.values() if each.reader is not None]
    assert asked.reader is not None
    error = asked.reader.events[-1]
    assert isinstance(error, Failed)
    assert error.error.metadata["text_offset"] == str(len(asked.reader.text.encode()))


# --- processes


@given("both services run as processes of their own, with {slots:d} slot")
async def as_processes(world: World, slots: int) -> None:
    """As an operator starts them."""
    await world.as_processes()
    await world.service.start()
    await world.service.add_host("host-1", {"pool_id": "gpu", "slots": slots})


@when("orchestratord is killed and started again")
async def killed(world: World) -> None:
    """SIGKILL: it has no time for anything."""
    await world.service.restart()


# --- commands


@when('somebody types "{line}"')
async def types(world: World, line: str) -> None:
    """In a shell of their own, which knows the address of the service."""
    world.answer = await llorch(line.format(directory=world.directory), world.service.address)


@then('the command succeeds and shows "{one}" and "{two}"')
def shows_both(world: World, one: str, two: str) -> None:
    """On its standard output."""
    assert world.answer.code == 0, world.answer
    assert one in world.answer.out, world.answer
    assert two in world.answer.out, world.answer


@then('the command succeeds and shows "{words}"')
def shows(world: World, words: str) -> None:
    """On its standard output."""
    assert world.answer.code == 0, world.answer
    assert words in world.answer.out, world.answer


@then('the command fails with {code:d} and says "{words}"')
def fails(world: World, code: int, words: str) -> None:
    """On its standard error, or where its answer goes."""
    assert world.answer.code == code, world.answer
    assert words in world.answer.err + world.answer.out


@at_any_point('the pool "{pool_id}" is drained')
async def is_drained(world: World, pool_id: str) -> None:
    """It takes no more work; what runs there goes on."""
    world.answer = await (await world.client()).drain_pool(pool_id, timeout_s=60)


@at_any_point('the drain of the pool "{pool_id}" is ended')
async def drain_ended(world: World, pool_id: str) -> None:
    """It takes work again."""
    client = await world.client()
    await client.undrain_pool(pool_id)
    async with asyncio.timeout(20):
        while not any(p.pool_id == pool_id and p.state == "READY" for p in await client.pools()):
            pass


@when('the operator drains the pool "{pool_id}"')
async def operator_drains(world: World, pool_id: str) -> None:
    """As any client may while nobody is asked for a token."""
    await is_drained(world, pool_id)


@when('the operator ends the drain of the pool "{pool_id}"')
async def operator_undrains(world: World, pool_id: str) -> None:
    """It takes work again."""
    await drain_ended(world, pool_id)


@when('the operator drains the pool of "{name}" at once')
async def drains_at_once(world: World, name: str) -> None:
    """What runs there has no time left."""
    job_now = await world.look_up(name)
    await (await world.client()).drain_pool(job_now.pool_id, timeout_s=0)


@then('the pool "{pool_id}" is {state:w}')
async def pool_is(world: World, pool_id: str, state: str) -> None:
    """As the list of pools says, to whoever may see it."""
    client = await world.client(next((n for n in world.service.tokens if n != HOST_NAME), ""))
    (pool,) = [pool for pool in await client.pools() if pool.pool_id == pool_id]
    assert pool.state == state


@given("somebody watches the pools")
async def watches(world: World) -> None:
    """And is told all of them first."""
    pools = (await world.client()).watch_pools()
    assert await anext(pools)
    world.notes["watch"] = pools
    world.at_end(pools.aclose)


@then('the watcher is told that the pool "{pool_id}" is {state:w}')
async def watcher_told(world: World, pool_id: str, state: str) -> None:
    """Sooner or later, and without asking."""
    async for pools in world.notes["watch"]:
        if any((pool.pool_id, pool.state) == (pool_id, state) for pool in pools):
            return


@when('the operator reloads the pool "{pool_id}"')
async def reloads(world: World, pool_id: str) -> None:
    """Its model anew."""
    world.answer = await (await world.client()).reload_pool(pool_id)


@when('the operator reloads the pool "{pool_id}" with the model "{model}"')
async def reloads_with(world: World, pool_id: str, model: str) -> None:
    """Another model."""
    world.answer = await (await world.client()).reload_pool(pool_id, model)


@then("the reload is {outcome:w}")
def reload_is(world: World, outcome: str) -> None:
    """And the pool serves."""
    assert world.answer.outcome == outcome, world.answer
    assert world.answer.pool.state == "READY"


@then("the operator is told why")
def told_why(world: World) -> None:
    """In a sentence."""
    assert world.answer.detail


@when("the service has ended")
async def has_ended(world: World) -> None:
    """What it recorded is complete."""
    await world.service.close()
