"""What a client is told when something is refused or goes wrong."""

from llamaorch_client import ErrorDetail, Failed, IncompatibleError, LlamaOrchError
from tests.features.gherkin import then, when
from tests.features.steps.situations import SITUATIONS
from tests.features.world import World


@then('"{name}" is refused with {reason} because of "{label}"')
def refused_because(world: World, name: str, reason: str, label: str) -> None:
    """The rule that refused it has a name."""
    error = refusal_of(world, name)
    assert (error.reason, error.metadata.get("policy_label")) == (reason, label)


@then('"{name}" is refused with {reason:w}')
def is_refused(world: World, name: str, reason: str) -> None:
    """At the door: it was never queued."""
    assert refusal_of(world, name).reason == reason


@then("the call is refused with {reason:w}")
def call_refused(world: World, reason: str) -> None:
    """Whatever was asked for."""
    assert world.refusal is not None, f"it was answered: {world.answer}"
    assert world.refusal.reason == reason


@then("the refusal says to come back after a while")
def come_back(world: World) -> None:
    """A retry helps, and not at once; the wait is bounded."""
    error = last_refusal(world)
    assert error.retriable
    assert error.retry_after_ms is not None
    assert 1 <= error.retry_after_ms <= 60_000


@then("its error says to come back after a while")
async def its_error_says(world: World) -> None:
    """The error that ended a job."""
    errors = [
        event.error
        for asked in world.jobs.values()
        for event in (asked.reader.events if asked.reader else ())
        if isinstance(event, Failed)
    ]
    (error,) = errors
    assert error.metadata["retriable"] == "true"
    assert error.retry_after_ms is not None


@then("a retry is of no use")
def no_use(world: World) -> None:
    """The same request would be refused again."""
    error = last_refusal(world)
    assert not error.retriable
    assert error.metadata["retriable"] == "false"
    assert error.retry_after_ms is None


@then('the refusal names the field "{field}"')
def names_field(world: World, field: str) -> None:
    """And says what to change."""
    described = {each.field: each.description for each in last_refusal(world).violations}
    assert described.get(field), described


@then('the refusal says that pool "{pool_id}" lacks the {kind:w}')
def pool_lacks(world: World, pool_id: str, kind: str) -> None:
    """What was needed and what is offered."""
    error = last_refusal(world)
    assert isinstance(error, IncompatibleError)
    found = {(each.pool_id, each.kind): each.description for each in error.shortfalls}
    assert found.get((pool_id, kind)), found


@then('the refusal names the rule "{label}"')
def names_rule(world: World, label: str) -> None:
    """As `policy_label`."""
    assert last_refusal(world).metadata.get("policy_label") == label


@then('the refusal tells: "{words}"')
def refusal_tells(world: World, words: str) -> None:
    """In its sentence for people."""
    assert words in last_refusal(world).message


def refusal_of(world: World, name: str) -> LlamaOrchError:
    """The refusal of a job."""
    error = world.jobs[name].refusal
    assert error is not None, f"it was accepted: {world.jobs[name].receipt}"
    return error


def last_refusal(world: World) -> LlamaOrchError:
    """The latest refusal of anything."""
    if world.refusal is not None:
        return world.refusal
    refused = [asked.refusal for asked in world.jobs.values() if asked.refusal is not None]
    assert refused, "nothing was refused"
    return refused[-1]


# --- the table of errors


@when("this happens: {case}")
async def happens(world: World, case: str) -> None:
    """Each case is told in `situations.py`."""
    world.answer = await SITUATIONS[case](world)


@then("the client is told {reason:w}, with the code {code:w}")
def told_reason(world: World, reason: str, code: str) -> None:
    """As reason and canonical code of google.rpc.Status."""
    error: ErrorDetail = world.answer
    assert (error.reason, error.code) == (reason, code), error
    assert error.message


@then("it is told: try again after so long")
def told_wait(world: World) -> None:
    """In RetryInfo and in the metadata, which agree."""
    error: ErrorDetail = world.answer
    assert error.metadata["retriable"] == "true"
    assert error.retry_after_ms is not None
    assert error.retry_after_ms == int(error.metadata["retry_after_ms"]) > 0


@then("it is told: try again")
def told_again(world: World) -> None:
    """The wait is the client's own choice."""
    error: ErrorDetail = world.answer
    assert (error.metadata["retriable"], error.retry_after_ms) == ("true", None)


@then("it is told: do not try the same again")
def told_never(world: World) -> None:
    """It would fail again."""
    error: ErrorDetail = world.answer
    assert (error.metadata["retriable"], error.retry_after_ms) == ("false", None)
