"""Seeing what happens: capabilities, reasons, counts, logs, traces."""

import asyncio
import itertools
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from llamaorch_client import AsyncClient, Capabilities, ClientOptions, Explanation
from tests.features.gherkin import given, then, when
from tests.features.steps.wishes import job
from tests.features.world import World
from tests.integration.telemetry.both import parsed, scrape, total
from tests.integration.telemetry.receiver import receiving

# --- capabilities


@when("the client asks what the service can do")
async def asks_capabilities(world: World) -> None:
    """The client without a name."""
    world.answer = await (await world.client()).capabilities()


@when("{who:w} asks what the service can do")
async def somebody_asks_capabilities(world: World, who: str) -> None:
    """Everybody is told their own limits."""
    world.answer = await (await world.client(who)).capabilities()


@then('the models are "{names}"')
def the_models(world: World, names: str) -> None:
    """By name."""
    assert ", ".join(told(world).model_ids) == names


@then('{count:d} jobs of "{model}" run at once', '{count:d} job of "{model}" runs at once')
def at_once(world: World, count: int, model: str) -> None:
    """On pools that take work now."""
    assert told(world).jobs_at_once(model) == count


@then('every pool of "{model}" takes a context of {least:d} tokens, and one takes {most:d}')
def contexts(world: World, model: str, least: int, most: int) -> None:
    """What a client may safely ask for, and what somebody could serve."""
    (found,) = [each for each in told(world).replica_sets if each.model_id == model]
    assert (found.ctx_min, found.ctx_max) == (least, most)


@then("the version of the interface is told, and the features")
def version_told(world: World) -> None:
    """A client may hold the version against its own."""
    assert told(world).api_version
    assert told(world).features


@then("she is told that she may send {count:d} job a minute")
def told_limit(world: World, count: int) -> None:
    """The limit that she will meet."""
    assert told(world).limits.requests_per_min == count


@then("he is told no such limit")
def told_none(world: World) -> None:
    """0 sets none."""
    assert told(world).limits.requests_per_min == 0


def told(world: World) -> Capabilities:
    """The latest answer about capabilities."""
    assert isinstance(world.answer, Capabilities)
    return world.answer


# --- reasons


@when('the client asks why "{name}" ran where it ran')
@when('the client asks why "{name}" waits')
async def asks_why(world: World, name: str) -> None:
    """One call answers both."""
    asked = world.jobs[name]
    world.answer = await asked.client.explain(asked.job_id)


@then("it ran on the only pool that was free")
def ran_on_free(world: World) -> None:
    """The decision names it and says why."""
    explanation: Explanation = world.answer
    (decision,) = explanation.decisions
    assert decision.decided_by == "only_candidate"
    assert [each.pool_id for each in decision.candidates] == [decision.pool_id]
    assert decision.pool_id == explanation.job.pool_id


@then("the other pool is listed with the reason {reason:w}")
def other_listed(world: World, reason: str) -> None:
    """Everybody who could not is there."""
    (decision,) = world.answer.decisions
    ((other, shortfalls),) = [(each.pool_id, each.shortfalls) for each in decision.exclusions]
    assert {other, decision.pool_id} == {"left", "right"}
    assert [each.reason for each in shortfalls] == [reason]


@then('it waits for the pool "{pool_id}" because of {reason:w}')
def waits_for(world: World, pool_id: str, reason: str) -> None:
    """What would have to change."""
    explanation: Explanation = world.answer
    assert explanation.decisions == ()
    found = {each.pool_id: [s.reason for s in each.shortfalls] for each in explanation.waiting_for}
    assert found == {pool_id: [reason]}


@then('"{name}" waits because the pool "{pool_id}" is "{words}"')
async def waits_because(world: World, name: str, pool_id: str, words: str) -> None:
    """As its explanation says."""
    await asks_why(world, name)
    offered = {
        shortfall.offered
        for each in world.answer.waiting_for
        if each.pool_id == pool_id
        for shortfall in each.shortfalls
    }
    assert words in offered


# --- counts


@then(
    "the metrics count {accepted:d} accepted jobs: {finished:d} finished, {cancelled:d} cancelled,"
    " and {refused:d} refused"
)
async def metrics_count(
    world: World, accepted: int, finished: int, cancelled: int, refused: int
) -> None:
    """In one scrape."""
    found = parsed(await metrics(world))
    assert total(found, "tasks_enqueued_total") == accepted
    assert total(found, "tasks_finished_total", outcome="finished") == finished
    assert total(found, "tasks_finished_total", outcome="cancelled") == cancelled
    assert total(found, "tasks_canceled_total") == cancelled
    assert total(found, "tasks_finished_total") == finished + cancelled == accepted
    assert total(found, "tasks_rejected_total") == refused
    assert total(found, "admission_backpressure_events_total", policy="reject") == refused


@then("no metric counts a job that is still alive")
async def none_alive(world: World) -> None:
    """All have ended."""
    found = parsed(await metrics(world))
    assert total(found, "tasks_live") == total(found, "queue_depth") == 0


@then('nothing of "{words}" is in the metrics')
async def not_in_metrics(world: World, words: str) -> None:
    """Neither as a label nor as a name."""
    text = await metrics(world)
    assert "tasks_enqueued_total" in text
    assert words not in text


async def metrics(world: World) -> str:
    """One scrape of orchestratord."""
    return await scrape(f"http://127.0.0.1:{world.service.server.metrics_port}/metrics")


# --- logs


@when('the client sends the job "{name}" under the correlation id "{correlation_id}"')
async def sends_correlated(world: World, name: str, correlation_id: str) -> None:
    """An id of the client's own."""
    client = await world.client()
    world.answer = await client.enqueue(job(), correlation_id=correlation_id)


@then('the answer comes with the correlation id "{correlation_id}"')
def answer_correlated(world: World, correlation_id: str) -> None:
    """The one that was sent."""
    assert world.answer.correlation_id == correlation_id


@then("the answer comes with a correlation id")
def answer_has_id(world: World) -> None:
    """And the log has it too."""
    (asked,) = world.jobs.values()
    assert asked.receipt is not None
    assert asked.receipt.correlation_id
    log_under(world, asked.receipt.correlation_id)


@then('the log tells of the accepted job under "{correlation_id}"')
def log_under(world: World, correlation_id: str) -> None:
    """One line, with a sentence for people."""
    (entry,) = [entry for entry in world.logs if entry["event"] == "job_accepted"]
    assert entry["correlation_id"] == correlation_id
    assert entry["human"].endswith(".")


@then('nothing of "{words}" is in any log')
def not_logged(world: World, words: str) -> None:
    """Of either service."""
    assert world.logs
    assert words not in world.logged()


@then('nothing that "{name}" has said is in any log')
def output_not_logged(world: World, name: str) -> None:
    """Not even two words of it."""
    words = world.jobs[name].follow().text.split()
    assert len(words) > 2
    for one, two in itertools.pairwise(words):
        assert f"{one} {two}" not in world.logged()


# --- traces


@given("all spans are collected")
def collected(world: World) -> None:
    """By a collector, over OTLP, as in production."""
    collector = receiving()
    world.notes["received"] = received = collector.__enter__()
    world.service.otlp_endpoint = received.endpoint

    async def close() -> None:
        await asyncio.to_thread(collector.__exit__, None, None, None)

    world.at_end(close)


@when('a client that traces runs the job "{name}"')
async def traces(world: World, name: str) -> None:
    """Then everything ends, so that every span has left."""
    provider = TracerProvider(resource=Resource.create({"service.name": "client"}))
    exporter = OTLPSpanExporter(endpoint=world.notes["received"].endpoint, insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = ClientOptions(tracer_provider=provider)
    async with AsyncClient(world.service.address, options=options) as client:
        result = await client.run(job([["job id", name]])).result()
        assert result.receipt is not None
        world.notes["trace"] = (await client.explain(result.receipt.job_id)).trace_id
    await world.service.close()
    await asyncio.to_thread(provider.shutdown)
    world.answer = [
        (attribute.value.string_value, span)
        for resource in world.notes["received"].resource_spans()
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == world.notes["trace"]
    ]


@then("one trace has the spans of the client, of orchestratord and of pool-managerd")
def spans_of_all(world: World) -> None:
    """All under the id that the explanation names."""
    assert {service for service, _ in world.answer} == {"client", "orchestratord", "pool-managerd"}


@then("it has the steps {names}")
def has_steps(world: World, names: str) -> None:
    """One span each."""
    found = {span.name for service, span in world.answer if service == "orchestratord"}
    assert {name.strip() for name in names.split(",")} <= found


@then("every span has its parent")
def has_parents(world: World) -> None:
    """The trace is in one piece."""
    spans: list[Any] = [span for _, span in world.answer]
    known = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_span_id not in {*known, b""}] == []
