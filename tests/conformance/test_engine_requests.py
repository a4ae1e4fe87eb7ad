"""What every adapter of an HTTP engine asks of its engine, and what it refuses to ask."""

import json
from typing import Any

import pytest

from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationRequest,
    SamplingParams,
)
from tests.conformance.attached import CHAT, Attached, failure_of, pieces_of, wanted
from tests.conformance.generations import collect, end_of


async def test_a_conversation_is_sent_as_one(attached: Attached) -> None:
    """The template is the engine's business; an end by itself is EOS."""
    attached.server.chunks = [attached.frames["chat"]["frames"].encode()]

    events = await collect(attached.engine, wanted(CHAT))

    assert pieces_of(events) == attached.frames["chat"]["pieces"]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.finish is Finish.EOS
    assert attached.server.bodies[-1].get("messages") in (None, [{"role": "user", "content": "hi"}])
    assert "/apply-template" in attached.server.asked or "messages" in attached.server.bodies[-1]


@pytest.mark.parametrize("prompt", ["text", CHAT])
@pytest.mark.parametrize(
    ("field", "value", "trace"),
    [
        ("temperature", 0.625, "0.625"),
        ("top_p", 0.375, "0.375"),
        ("top_k", 77, "77"),
        ("min_p", 0.125, "0.125"),
        ("json_schema", '{"type": "object", "title": "marker"}', "marker"),
        ("grammar", 'root ::= "marker"', "marker"),
        ("stop", ("marker",), "marker"),
    ],
)
async def test_a_parameter_is_sent_or_refused_by_name(
    attached: Attached, prompt: Any, field: str, value: Any, trace: str
) -> None:
    """Nothing is dropped silently: the request holds it, or it never leaves and says why."""
    end = end_of(await collect(attached.engine, wanted(prompt, **{field: value})))

    if attached.server.bodies:
        assert trace in json.dumps(attached.server.bodies[-1])
        return
    assert isinstance(end, Failed)
    assert end.failure is Failure.INVALID_REQUEST
    assert field in end.message


@pytest.mark.parametrize(
    "name", ["prompt", "stream", "seed", "model", "max_tokens", "logprobs", "top_logprobs", "odd"]
)
async def test_options_that_are_ours_or_unknown_are_refused(attached: Attached, name: str) -> None:
    """Among them log probabilities, which could not be delivered."""
    failure, message = await failure_of(attached, wanted(engine_options={name: 1}))

    assert failure is Failure.INVALID_REQUEST
    assert name in message
    assert not attached.server.bodies


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63 - 1, 2**64 - 1])
async def test_every_seed_reaches_the_engine_as_a_seed(attached: Attached, seed: int) -> None:
    """In its range, never as the number that means "random", and the same each time."""
    for _ in range(2):
        await collect(attached.engine, wanted(seed=seed))

    one, other = attached.server.bodies
    sent = one["options"]["seed"] if "options" in one else one["seed"]
    assert one == other
    assert 0 <= sent <= seed
    assert (sent == seed) or sent < 2**63


async def test_too_few_tokens_are_refused(attached: Attached) -> None:
    """Zero means "none" to one engine and "any number" to the next."""
    failure, message = await failure_of(attached, wanted(max_tokens=0))

    assert failure is Failure.INVALID_REQUEST
    assert "max_tokens" in message


async def test_without_a_limit_the_context_is_it_or_one_is_asked_for(attached: Attached) -> None:
    """A default of the engine, often 16 tokens, never cuts an output unasked."""
    for prompt in ("text", CHAT):
        attached.server.bodies.clear()

        end = end_of(await collect(attached.engine, wanted(prompt, max_tokens=None)))

        if attached.server.bodies:
            body = attached.server.bodies[-1]
            limit = body.get("max_tokens", body.get("n_predict"))
            limit = body["options"]["num_predict"] if "options" in body else limit
            assert limit in (None, 512, 4096)
        else:
            assert isinstance(end, Failed)
            assert "max_tokens" in end.message


async def test_continued_text_follows_the_prompt(attached: Attached) -> None:
    """Of a conversation it begins the answer, or is refused by name."""
    sampling = SamplingParams(seed=1, max_tokens=2)

    await collect(attached.engine, GenerationRequest("r", "once", sampling, continue_text=" upon"))
    chat = GenerationRequest("r", CHAT, sampling, continue_text=" upon")
    end = end_of(await collect(attached.engine, chat))

    assert attached.server.bodies[0]["prompt"] == "once upon"
    if len(attached.server.bodies) == 2:
        body = attached.server.bodies[1]
        messages = body.get("messages", [{"content": body.get("prompt")}])
        assert messages[-1]["content"].endswith(" upon")
    else:
        assert isinstance(end, Failed)
        assert "continue_text" in end.message


async def test_the_trace_goes_along(attached: Attached) -> None:
    """The engine's spans become children of the attempt; nothing keeps a stream alive."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await collect(attached.engine, GenerationRequest(
        "r", "hi", SamplingParams(seed=1, max_tokens=2), traceparent=traceparent
    ))  # fmt: skip

    headers = {name.lower(): value for name, value in attached.server.headers[-1].items()}
    assert headers["traceparent"] == traceparent
    assert "x-conversation-id" not in headers
