"""The service that a journey begins with."""

import asyncio
import tomllib

from pool_managerd.models.tiny_gguf import TINY, write_tiny_model
from tests.features.gherkin import Rows, given, when
from tests.features.world import World

POOL = "gpu"


@given("a service with {slots:d} slot", "a service with {slots:d} slots")
async def a_service(world: World, slots: int, docstring: str = "") -> None:
    """One host with one pool; the text below the step is the service's configuration."""
    await _configured(world, docstring)
    await world.service.add_host("host-1", {"pool_id": POOL, "slots": slots})


@given("a service without any pool")
async def no_pool(world: World, docstring: str = "") -> None:
    """Nobody has registered yet."""
    await _configured(world, docstring)


@given("a service with these pools")
async def these_pools(world: World, datatable: Rows, docstring: str = "") -> None:
    """One row per pool, each on a host of its own; the head names the settings of its engine."""
    await _configured(world, docstring)
    head, *rows = datatable
    for row in rows:
        pool = {key.strip(): _value(value) for key, value in zip(head, row, strict=True)}
        pool["pool_id"] = pool.pop("pool")
        await world.service.add_host(f"host-of-{pool['pool_id']}", pool)


@given("{name} has a token as {role}")
def has_a_token(world: World, name: str, role: str) -> None:
    """Given before the service starts, which then asks everybody for one."""
    world.service.know(name, role)


@given("the service waits {wait_ms:d} ms for somebody to listen")
async def waits_for_listeners(world: World, wait_ms: int) -> None:
    """Told to orchestratord with its next start."""
    world.service.tables["jobs"] = {"disconnect_grace_ms": wait_ms}
    await world.service.restart()


@when("orchestratord is restarted")
async def restarted(world: World) -> None:
    """It ends without a word to anybody, and a new one opens the journal."""
    await world.service.restart()


async def _configured(world: World, toml: str) -> None:
    for key, value in tomllib.loads(toml).items():
        world.service.tables[key] = value
    await world.service.start()


def _value(text: str) -> object:
    return int(text) if text.strip().lstrip("-").isdigit() else text.strip()


@given('two pools "{one}" and "{two}" with a real engine each, chosen by load alone')
async def real_engines(world: World, one: str, two: str) -> None:
    """The embedded llama.cpp with a tiny generated model, in a process of its own."""
    model = world.directory / "tiny.gguf"
    await asyncio.to_thread(write_tiny_model, model, TINY)
    # Speeds that were measured would decide before the place of a session does.
    await _configured(world, "[placement]\nperformance_scoring = false")
    engine = {"kind": "embedded", "model_path": str(model), "slots": 2, "ctx_per_slot": 512}
    pools = [{"pool_id": pool_id, **engine} for pool_id in (one, two)]
    await world.service.add_host("host-1", *pools)
