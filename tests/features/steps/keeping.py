"""Artifacts: what clients keep, and what becomes of it."""

from dataclasses import replace

from llamaorch_client import AsyncClient, LlamaOrchError
from llamaorch_client.artifact import ArtifactAbout, ArtifactFilter, ArtifactKind
from tests.features.gherkin import at_any_point, given, then, when
from tests.features.steps.jobs import TAKES_ITS_TIME
from tests.features.steps.wishes import job
from tests.features.world import World


@at_any_point('the client puts the {kind:w} "{name}" with the text "{text}"')
async def puts(world: World, kind: str, name: str, text: str) -> None:
    """Content, and what it is for."""
    about = ArtifactAbout(kind=kind_of(kind), media_type="text/plain")
    await put(world, await world.client(), name, text, about)


@when('{who:w} puts the plan "{name}" with the text "{text}"')
async def somebody_puts(world: World, who: str, name: str, text: str) -> None:
    """It is theirs."""
    about = ArtifactAbout(kind=ArtifactKind.PLAN)
    await put(world, await world.client(who), name, text, about)


@at_any_point('the client puts the {kind:w} "{name}" with the text "{text}" and the tag "{tag}"')
async def puts_tagged(world: World, kind: str, name: str, text: str, tag: str) -> None:
    """A word to find it by."""
    about = ArtifactAbout(kind=kind_of(kind), tags=(tag,))
    await put(world, await world.client(), name, text, about)


@when('the client puts the {kind:w} "{name}" with the text "{text}", made from "{parent}"')
async def puts_child(world: World, kind: str, name: str, text: str, parent: str) -> None:
    """It says what it came from."""
    about = ArtifactAbout(kind=kind_of(kind), parent_ids=(id_of(world, parent),))
    await put(world, await world.client(), name, text, about)


@when('the client asks for "{name}"')
async def asks_for(world: World, name: str) -> None:
    """All of its content."""
    await world.attempt((await world.client()).artifacts.read(id_of(world, name)))


@when('{who:w} asks for "{name}"')
async def somebody_asks_for(world: World, who: str, name: str) -> None:
    """By its id, which is no secret."""
    await world.attempt((await world.client(who)).artifacts.read(id_of(world, name)))


@when('the client deletes the artifact "{name}"')
async def deletes_artifact(world: World, name: str) -> None:
    """If nobody needs it."""
    await world.attempt((await world.client()).artifacts.delete(id_of(world, name)))


@when('the client sends a slow job "{name}" whose input is "{artifact}"')
async def job_with_input(world: World, name: str, artifact: str) -> None:
    """Instead of a prompt in the request."""
    request = replace(job(TAKES_ITS_TIME), prompt=None, artifact_id=id_of(world, artifact))
    await world.ask(name, request)


@when("somebody changes a byte of it on the disk")
def damages(world: World) -> None:
    """Behind the back of the service."""
    (sha256,) = {each.sha256 for each in world.notes["artifacts"].values()}
    (file,) = [path for path in world.directory.rglob(f"*{sha256[2:]}*") if path.is_file()]
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)


@given('the file "{name}" holds "{text}"')
def file_holds(world: World, name: str, text: str) -> None:
    """On the client's disk."""
    (world.directory / name).write_text(text, encoding="utf-8")


@then('"{name}" can be read and is "{text}"')
async def can_be_read(world: World, name: str, text: str) -> None:
    """The client has checked its digest."""
    _, content = await (await world.client()).artifacts.read(id_of(world, name))
    assert content.decode() == text


@then('"{one}" and "{other}" are one artifact')
async def one_artifact(world: World, one: str, other: str) -> None:
    """Known again by its content and what was said of it."""
    assert id_of(world, one) == id_of(world, other)
    client = await world.client()
    assert len([each async for each in client.artifacts.list()]) == 1


@then('"{name}" is found by the tag "{tag}"')
async def found_by_tag(world: World, name: str, tag: str) -> None:
    """It alone."""
    await found_are(world, ArtifactFilter(tags=(tag,)), name)


@then('"{name}" is found as a child of "{parent}"')
async def found_as_child(world: World, name: str, parent: str) -> None:
    """It alone."""
    await found_are(world, ArtifactFilter(parent_id=id_of(world, parent)), name)


@then('the ancestors of "{name}" are "{ancestor}"')
async def ancestors_are(world: World, name: str, ancestor: str) -> None:
    """The nearest first."""
    lineage = await (await world.client()).artifacts.info(id_of(world, name), ancestors=10)
    assert [each.artifact_id for each in lineage.ancestors] == [id_of(world, ancestor)]


@then('the artifact "{name}" is gone')
async def is_gone(world: World, name: str) -> None:
    """As if it had never been."""
    assert world.refusal is None, world.refusal
    client = await world.client()
    assert id_of(world, name) not in [each.artifact_id async for each in client.artifacts.list()]


async def put(
    world: World, client: AsyncClient, name: str, text: str, about: ArtifactAbout
) -> None:
    """Puts a text, whatever the answer."""
    world.refusal = None
    try:
        stored, _ = await client.artifacts.put(text.encode(), about)
    except LlamaOrchError as error:
        world.refusal = error
        return
    world.notes.setdefault("artifacts", {})[name] = stored


async def found_are(world: World, where: ArtifactFilter, name: str) -> None:
    """What a list tells is one artifact."""
    client = await world.client()
    found = [each.artifact_id async for each in client.artifacts.list(where)]
    assert found == [id_of(world, name)]


def id_of(world: World, name: str) -> str:
    """The id that the service gave."""
    return str(world.notes["artifacts"][name].artifact_id)


def kind_of(word: str) -> ArtifactKind:
    """What an artifact is for."""
    return ArtifactKind(word.upper())
