"""The configuration of a service that runs."""

from tests.features.gherkin import given, then, when
from tests.features.steps.services import POOL
from tests.features.world import World


@given("a service that reads its configuration from a file, with {slots:d} slot")
async def from_a_file(world: World, slots: int, docstring: str) -> None:
    """As operators have it."""
    world.service.write_file(docstring)
    await world.service.start()
    await world.service.add_host("host-1", {"pool_id": POOL, "slots": slots})


@when("the operator changes the file, and has it read again")
async def changes_file(world: World, docstring: str) -> None:
    """By RPC, or by SIGHUP."""
    world.service.write_file(docstring)
    world.answer = await (await world.client()).reload_config()


@then('it is told that "{key}" is in force')
def in_force(world: World, key: str) -> None:
    """With both values."""
    assert world.answer.problems == ()
    assert key in [change.key for change in world.answer.applied]


@then('it is told that "{key}" waits for a restart')
def waits_for_restart(world: World, key: str) -> None:
    """With both values."""
    assert world.answer.problems == ()
    assert key in [change.key for change in world.answer.needs_restart]


@then('it is told: "{words}"')
def told_problem(world: World, words: str) -> None:
    """One sentence per problem, and nothing has changed."""
    assert any(words in problem for problem in world.answer.problems), world.answer
    assert world.answer.applied == ()


@then('"{key}" is still {value}')
async def is_still(world: World, key: str, value: str) -> None:
    """What is in force, by the service's own word."""
    settings = (await (await world.client()).config()).settings
    assert {each.key: each.value for each in settings}[key] == value
