"""The catalog of models, as operators keep it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llamaorch_client.model_catalog import CatalogModel, DigestVerdict, ModelState
from tests.features.gherkin import Rows, at_any_point, then, when
from tests.features.steps.watching import metrics
from tests.features.world import World
from tests.integration.telemetry.both import parsed, total

# How a journey says what is known of a model.
FACTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "alias": ("aliases", lambda text: (text,)),
    "engine": ("engines", lambda text: (text,)),
    "digest": ("digest", str),
    "context": ("ctx_max", int),
    "expected tokens": ("expected_tokens", int),
}


def model(name: str, rows: Rows) -> CatalogModel:
    """What an operator says of a model."""
    known = CatalogModel(model_id=name)
    for fact, value in rows:
        field, make = FACTS[fact.strip()]
        known = replace(known, **{field: make(value.strip())})
    return known


@at_any_point('the operator registers the model "{name}" with')
async def registers(world: World, name: str, datatable: Rows) -> None:
    """It is durable when the answer comes."""
    world.answer = await (await world.client()).catalog.register(model(name, datatable))


@when('the operator registers the model "{name}" with the digest that its pool reports')
async def registers_digest(world: World, name: str) -> None:
    """As the list of pools shows it."""
    client = await world.client()
    (pool,) = await client.pools()
    known = CatalogModel(model_id=name, digest=pool.model_digest)
    world.answer = await client.catalog.register(known)


@when('the operator updates the model "{name}" with')
async def updates(world: World, name: str, datatable: Rows) -> None:
    """Whatever its revision."""
    await world.attempt((await world.client()).catalog.update(model(name, datatable)))


@when('another operator, who has seen revision {revision:d}, updates the model "{name}"')
async def updates_old(world: World, revision: int, name: str) -> None:
    """That one only."""
    changed = replace(model(name, [["alias", "other"]]), revision=revision)
    await world.attempt((await world.client()).catalog.update(changed))


@when('the operator retires the model "{name}" in favour of "{other}", with {grace}')
async def retires(world: World, name: str, other: str, grace: str) -> None:
    """No new job from now on."""
    grace_s = {"an hour of grace": 3600.0, "no grace": 0.0}[grace]
    client = await world.client()
    world.answer = await client.catalog.retire(name, grace_s=grace_s, replaced_by=other)


@when('the operator activates the model "{name}"')
async def activates(world: World, name: str) -> None:
    """All of the retirement is undone."""
    world.answer = await (await world.client()).catalog.activate(name)


@when('the operator verifies the model "{name}"')
async def verifies(world: World, name: str) -> None:
    """Against what pools report."""
    world.answer = await (await world.client()).catalog.verify(name)


@then("it is verified")
def verified(world: World) -> None:
    """Nobody reports anything else."""
    assert world.answer.verified, world.answer


@then('it is not verified, for the pool "{pool_id}" reports another digest')
def not_verified(world: World, pool_id: str) -> None:
    """Both digests are told."""
    assert not world.answer.verified
    (verdict,) = world.answer.pools
    assert (verdict.pool_id, verdict.verdict) == (pool_id, DigestVerdict.MISMATCH)
    assert verdict.reported_digest != world.answer.digest


@then("the operator is warned of the missing signature")
def warned(world: World) -> None:
    """It is no refusal."""
    assert any("signature" in warning for warning in world.answer.warnings), world.answer


@then("the metrics count the verification")
async def counted(world: World) -> None:
    """As a good one."""
    found = parsed(await metrics(world))
    assert total(found, "catalog_verifications_total", result="ok") >= 1, found[
        "catalog_verifications_total"
    ]


@then('"{name}" ran as the model "{model_id}", with what the catalog says of it')
async def ran_as(world: World, name: str, model_id: str) -> None:
    """The job says what was added, and of which revision."""
    job = await world.look_up(name)
    assert job.model_id == model_id
    assert job.from_catalog is not None
    assert job.from_catalog.revision == 1


@then('the service shows the model "{name}" as {state:w}')
async def shown_as(world: World, name: str, state: str) -> None:
    """In the catalog and in the metrics."""
    known = await (await world.client()).catalog.get(name)
    assert known.state is ModelState(state.upper())
    found = parsed(await metrics(world))
    assert total(found, "model_state", model_id=name, state=state) == 1
