"""Who may do what: tokens, starts that are refused, and where tools may connect to."""

import asyncio
import contextlib
import io

from llamaorch_client import AsyncClient, ClientOptions
from orchestrator_core.__main__ import EXIT_CANNOT_START, main
from orchestrator_core.auth.tokens import fingerprint, new_token
from tests.features.gherkin import then, when
from tests.features.service import HOST_NAME, ONCE, WAIT_S
from tests.features.steps.wishes import job
from tests.features.world import World


@then("the service says that it is {status:w}")
async def health(world: World, status: str) -> None:
    """Load balancers have no token."""
    assert await (await world.client()).health() == status


@when('{who:w} drains the pool "{pool_id}"')
async def drains(world: World, who: str, pool_id: str) -> None:
    """Which is for operators."""
    client = await world.client(who)
    await world.attempt(client.drain_pool(pool_id, timeout_s=60))


@when("somebody comes with a token that nobody gave")
async def foreign_token(world: World) -> None:
    """It looks like any other."""
    world.notes["foreign"] = token = new_token()
    options = ClientOptions(token=token, retry=ONCE)
    async with AsyncClient(world.service.address, options=options) as client:
        await world.attempt(client.enqueue(job()))


@then("that call is refused, and neither token is in any log")
def no_token_logged(world: World) -> None:
    """Nor any other."""
    assert world.refusal is not None
    assert world.refusal.reason == "UNAUTHENTICATED"
    for token in (world.notes["foreign"], *world.service.tokens.values()):
        assert token not in world.logged()


@then("the log tells six digits of the foreign one")
def fingerprint_logged(world: World) -> None:
    """Enough to know it again."""
    digits = fingerprint(world.notes["foreign"])
    assert len(digits) == 6
    assert any(entry.get("token_fingerprint") == digits for entry in world.logs)


@when("a GPU host without a token tries to register")
async def host_without_token(world: World) -> None:
    """It dials as any host does."""
    world.service.tokens.pop(HOST_NAME)
    host = await world.service.begin_host("stranger", {"pool_id": "gpu", "slots": 1})
    async with asyncio.timeout(WAIT_S):
        while not any("link.token_file" in str(entry.get("error", entry)) for entry in world.logs):
            assert not host.task.done()
            # A log tells nobody that it grew.
            await asyncio.sleep(0.01)


@then("the service knows no pool, and the host is told what to set")
async def knows_no_pool(world: World) -> None:
    """In its own log."""
    assert await (await world.client("ann")).pools() == ()
    assert "link.token_file or link.token_env" in world.logged()


# --- starts that are refused


@when("somebody starts orchestratord with")
def starts_with(world: World, docstring: str) -> None:
    """The command, with this configuration file."""
    file = world.directory / "orchestratord.toml"
    file.write_text(docstring, encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        world.answer = main(["--config", str(file)])
    world.notes["said"] = said.getvalue()


@then('it does not start and says "{words}"')
def does_not_start(world: World, words: str) -> None:
    """In one line per problem, and with its exit code."""
    assert world.answer == EXIT_CANNOT_START
    assert words in world.notes["said"]
    assert all(line.startswith("orchestratord: ") for line in world.notes["said"].splitlines())


# --- where tools may connect to


@when('a tool asks for "{address}"')
async def tool_asks(world: World, address: str) -> None:
    """Before it connects; nothing is connected to."""
    await world.attempt((await world.client()).check_outbound(address))


@when('a tool asks for "{address}" on behalf of the job "{job_id}"')
async def tool_asks_for_job(world: World, address: str, job_id: str) -> None:
    """The id is what the tool says."""
    client = await world.client()
    await world.attempt(client.check_outbound(address, job_id=job_id, tool="fetcher"))


@then("it is allowed")
def allowed(world: World) -> None:
    """And what was judged is told."""
    assert world.answer.allowed, world.answer
    assert world.answer.host


@then("it is denied")
def denied(world: World) -> None:
    """With a sentence for people."""
    assert not world.answer.allowed, world.answer
    assert world.answer.reason


@then('it is denied by "{rule}"')
def denied_by(world: World, rule: str) -> None:
    """The rule that decided."""
    denied(world)
    assert rule in world.answer.rule, world.answer


@then('the log tells of the decision with the job "{job_id}" and the host "{host}"')
def decision_logged(world: World, job_id: str, host: str) -> None:
    """Under the id that the tool was told."""
    (entry,) = [entry for entry in world.logs if entry["event"] == "outbound_decision"]
    assert (entry["job_id"], entry["remote_host"]) == (job_id, host)
    assert entry["decision_id"] == world.answer.decision_id
