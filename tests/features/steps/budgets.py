"""Sessions: their turns, their place, and what they may spend."""

import asyncio

import pytest

from llamaorch_client import (
    Budgets,
    JobRequest,
    Metrics,
    NotFoundError,
    RejectedError,
    Session,
    Started,
)
from tests.features.gherkin import at_any_point, then, when
from tests.features.service import WAIT_S
from tests.features.steps.wishes import job
from tests.features.world import World


@at_any_point('the client sends the job "{name}" in the session "{session}"')
async def sends_in_session(world: World, name: str, session: str) -> None:
    """A turn of a conversation."""
    await world.ask(name, job([["session", session]]))


@when('{who:w} sends the job "{name}" in the session "{session}"')
async def somebody_in_session(world: World, who: str, name: str, session: str) -> None:
    """A turn of a client with a name."""
    await world.ask(name, job([["session", session]]), who)


@when('the client deletes the session "{session}"')
async def deletes(world: World, session: str) -> None:
    """Affinity, turns and budgets are forgotten."""
    await (await world.client()).delete_session(session)


@then('the session "{session}" has had {turns:d} of its {most:d} turns')
async def has_had(world: World, session: str, turns: int, most: int) -> None:
    """Accepted jobs that reached a pool or still may."""
    found = await look(world, session)
    assert (found.turns, found.turns_max) == (turns, most)


@then('the session "{session}" is open, with {count:d} job under way')
async def is_open(world: World, session: str, count: int) -> None:
    """It does not expire while that lasts."""
    found = await look(world, session)
    assert len(found.job_ids) == count
    assert found.expires_at is None


@then('the session "{session}" is forgotten after a while')
async def forgotten(world: World, session: str) -> None:
    """Its time is up; the service is asked until it says so."""
    client = await world.client()
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await client.get_session(session)
            except NotFoundError:
                break
    assert [each.session_id async for each in client.list_sessions()] == []


@then('there is no session "{session}"')
async def no_session(world: World, session: str) -> None:
    """Of the one client that there is."""
    await bob_has_none(world, "", session)


@then('{who:w} has no session "{session}"')
async def bob_has_none(world: World, who: str, session: str) -> None:
    """What others have is not told."""
    client = await world.client(who)
    assert session not in [each.session_id async for each in client.list_sessions()]
    with pytest.raises(NotFoundError):
        await client.get_session(session)


@then('{who:w} has the session "{session}"')
async def has_session(world: World, who: str, session: str) -> None:
    """It is listed, and can be looked up."""
    client = await world.client(who)
    assert [each.session_id async for each in client.list_sessions()] == [session]
    assert (await client.get_session(session)).turns == 1


@then('"{name}" ran on the pool "{pool_id}", where its words were still in the cache')
async def ran_warm(world: World, name: str, pool_id: str) -> None:
    """By the pool's own word."""
    assert await where(world, name) == (pool_id, True)


@then('"{name}" ran on the pool "{pool_id}", where nothing was in the cache')
async def ran_cold(world: World, name: str, pool_id: str) -> None:
    """As for every stranger."""
    assert await where(world, name) == (pool_id, False), world.jobs[name]


@then('the session "{session}" is remembered by the pool "{pool_id}"')
async def remembered_by(world: World, session: str, pool_id: str) -> None:
    """With so many tokens."""
    found = await look(world, session)
    assert found.warm_pool_id == pool_id
    assert found.kv_tokens


# --- budgets


@then('"{name}" is told that {left:d} tokens are left for further jobs')
def told_tokens(world: World, name: str, left: int) -> None:
    """In the receipt."""
    assert remaining(world, name).tokens == left, remaining(world, name)


@then('"{name}" is told that {left:d} millionths are left for further jobs')
def told_cost(world: World, name: str, left: int) -> None:
    """In the receipt."""
    assert remaining(world, name).cost_micros == left, remaining(world, name)


@then('"{name}" is told that {left:d} ms are left for further jobs')
def told_time(world: World, name: str, left: int) -> None:
    """In the receipt."""
    assert remaining(world, name).time_ms == left


@then('the session "{session}" has set aside {reserved:d} tokens and spent {spent:d}')
async def set_aside(world: World, session: str, reserved: int, spent: int) -> None:
    """Both are in the service's answer about the session."""
    found = await look(world, session)
    assert (found.reserved.tokens or 0, found.spent.tokens or 0) == (reserved, spent), found


@then('the session "{session}" has {left:d} tokens left')
async def tokens_left(world: World, session: str, left: int) -> None:
    """For further jobs."""
    found = await look(world, session)
    assert found.remaining is not None
    assert found.remaining.tokens == left


@when(
    "the client gives {count:d} jobs of {most:d} tokens each on one stream, in a session with a"
    " budget of {budget:d}"
)
async def on_one_stream_in_session(world: World, count: int, most: int, budget: int) -> None:
    """All at once; each has words of its own, so that none is a repetition."""
    rows = [["session", "chat"], ["session budget of tokens", str(budget)]]
    requests = [
        job([*rows, ["most tokens", str(most)], ["seed", str(seed + 1)]]) for seed in range(count)
    ]
    client = await world.client()
    async with client.exchange() as exchange:

        async def one(request: JobRequest) -> str:
            try:
                given = await exchange.run(request)
                return (await given.result()).end.state.value
            except RejectedError as error:
                return error.policy_label

        world.answer = await asyncio.gather(*(one(request) for request in requests))


@then('{count:d} of them finish, and the others are refused because of "{label}"')
def some_finish(world: World, count: int, label: str) -> None:
    """What is set aside counts at once."""
    assert sorted(set(world.answer)) == sorted({"FINISHED", label})
    assert world.answer.count("FINISHED") == count


@then('the session "{session}" has spent {cost:d} millionths')
async def spent_cost(world: World, session: str, cost: int) -> None:
    """Of whatever the prices are in."""
    found = await look(world, session)
    assert (found.spent.cost_micros, found.reserved.cost_micros or 0) == (cost, 0)


@then('the session "{session}" comes to have spent {tokens:d} tokens, with nothing set aside')
async def comes_to_tokens(world: World, session: str, tokens: int) -> None:
    """Once the engine has confirmed that it stopped, and told what it took."""
    found = await settled(world, session)
    assert found.spent.tokens == tokens, found


@then('the session "{session}" comes to have spent at least {time:d} ms, with nothing set aside')
async def comes_to_time(world: World, session: str, time: int) -> None:
    """Once the engine has confirmed that it stopped."""
    found = await settled(world, session)
    assert found.spent.time_ms is not None
    assert found.spent.time_ms >= time


@then('with its first word "{name}" is told that {left:d} tokens are left')
async def told_with_words(world: World, name: str, left: int) -> None:
    """If the job ended now."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: any(isinstance(event, Metrics) for event in reader.events))
    told = next(event for event in reader.events if isinstance(event, Metrics))
    assert told.remaining is not None
    assert told.remaining.tokens == left, told


def remaining(world: World, name: str) -> Budgets:
    """What a receipt says is left."""
    receipt = world.jobs[name].receipt
    assert receipt is not None, world.jobs[name].refusal
    assert receipt.remaining is not None
    return receipt.remaining


async def look(world: World, session: str) -> Session:
    """What the service says of a session."""
    return await (await world.client()).get_session(session)


async def settled(world: World, session: str) -> Session:
    """Asks until nothing is set aside any more."""
    async with asyncio.timeout(WAIT_S):
        while (found := await look(world, session)).job_ids:
            pass
    assert not found.reserved.tokens
    assert not found.reserved.time_ms
    return found


async def where(world: World, name: str) -> tuple[str, bool]:
    """The pool that a job ran on, and whether that found its words again."""
    reader = world.jobs[name].follow()
    assert await reader.ended() == "FINISHED"
    (started,) = [event for event in reader.events if isinstance(event, Started)]
    return started.pool_id, started.kv_warmth
